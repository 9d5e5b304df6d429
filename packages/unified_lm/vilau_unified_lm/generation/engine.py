"""The engine that draws and answers: one LM step per place and D depth steps per visual position, all cached.

Weights are one class (`UnifiedLM`), generation another: an engine holds no state between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from vilau_unified_lm.document import Document
from vilau_unified_lm.generation.prompts import left_padded
from vilau_unified_lm.generation.sampling import Sampling, guided, sample, uniform_draws
from vilau_unified_lm.model import UnifiedLM

GREEDY = Sampling(temperature=0, top_k=None, top_p=1.0, guidance=1.0)


class Decoding:
    """The state of one batch on the LM's axis: keys and values so far, and the newest hidden state of each row."""

    def __init__(self, model: UnifiedLM, prompts: Sequence[Document], to_come: int) -> None:
        device = next(model.parameters()).device
        context = int(model.config.backbone_config.max_position_embeddings)
        batch = left_padded(prompts, model.image_tokenizer.depth, context, to_come).to(device)
        self.model = model
        self.cache = DynamicCache(config=model.config.backbone_config)
        self.mask = (batch.document_ids > 0).long()
        self.position = batch.position_ids[:, -1:]
        features = model.image_tokenizer.embed_codes(batch.codes).sum(dim=-2)
        self.hidden = self._forward(model.embed(batch, features), batch.position_ids)

    def advance(self, inputs: Tensor) -> None:
        """One more place: inputs float [B, hidden]."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.position = self.position + 1
        self.hidden = self._forward(inputs.unsqueeze(1), self.position)

    def _forward(self, inputs: Tensor, position_ids: Tensor) -> Tensor:
        output = self.model.llm.model(
            inputs_embeds=inputs,
            attention_mask=self.mask,
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden


class Engine:
    """Draws pictures from prompts and writes text after prompts, in batches of different lengths."""

    def __init__(self, model: UnifiedLM) -> None:
        self.model = model.eval()
        self.tokenizer = model.image_tokenizer

    @torch.inference_mode()
    def draw(
        self,
        prompts: Sequence[Document],
        blank: Document,
        sampling: Sampling,
        seeds: Sequence[int],
        on_position: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Codes int64 [B, h, w, D], one picture a prompt.

        prompts: documents that end at <image_start>; blank: the unconditional one for guidance; seeds: one a
        prompt; on_position: told after each visual position.
        """
        return self.film(prompts, blank, 1, sampling, seeds, on_position)[:, 0]

    @torch.inference_mode()
    def film(
        self,
        prompts: Sequence[Document],
        blank: Document,
        frames: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_position: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Codes int64 [B, frames, h, w, D], one video a prompt; prompts end at <video_start>, else as `draw`."""
        _check_seeds(prompts, seeds)
        tower, depths = self.tokenizer, self.tokenizer.depth
        height, width = tower.grid
        positions = frames * height * width
        guide = sampling.guidance != 1
        rows = [*prompts, *([blank] * len(prompts))] if guide else list(prompts)
        state = Decoding(self.model, rows, positions)
        uniform = uniform_draws(seeds, positions * depths, state.hidden.device).unflatten(1, (-1, depths))
        drawn: list[Tensor] = []
        for place in range(positions):
            codes = self._draw_position(state.hidden, uniform[:, place], sampling)
            drawn.append(codes)
            if on_position is not None:
                on_position(place)
            if place + 1 < positions:
                features = tower.embed_codes(codes).sum(dim=-2)
                index = torch.full((len(codes),), place % (height * width), device=codes.device)
                inputs = self.model.projector(features, index)
                state.advance(inputs.repeat(2, 1) if guide else inputs)
        return torch.stack(drawn, dim=1).view(len(prompts), frames, height, width, depths)

    def _draw_position(self, hidden: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
        """The D codes of one visual position: hidden float [B or 2B, hidden], uniform [B, D] -> int64 [B, D]."""
        depth, books = self.model.depth, self.tokenizer
        guide = sampling.guidance != 1
        cache = depth.start_cache(len(hidden), hidden)
        source, codes = hidden, torch.zeros_like(uniform, dtype=torch.long)
        for level in range(books.depth):
            logits = depth.step(source, cache)
            if guide:
                logits = guided(logits, sampling.guidance)
            codes[:, level] = sample(logits, uniform[:, level], sampling)
            summed = books.embed_codes(codes)[:, : level + 1].sum(dim=1)
            source = summed.repeat(2, 1) if guide else summed
        return codes

    @torch.inference_mode()
    def write(
        self, prompts: Sequence[Document], end: int, max_tokens: int, sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[int]]:
        """Text ids after each prompt, without the closing `end`; at most `max_tokens`. Guidance does not apply."""
        _check_seeds(prompts, seeds)
        state = Decoding(self.model, prompts, max_tokens)
        uniform = uniform_draws(seeds, max_tokens, state.hidden.device)
        embed = self.model.llm.get_input_embeddings()
        written: list[Tensor] = []
        finished = torch.zeros(len(prompts), dtype=torch.bool, device=state.hidden.device)
        for step in range(max_tokens):
            token = sample(self.model.llm.lm_head(state.hidden), uniform[:, step], sampling)
            token = token.masked_fill(finished, end)
            finished = finished | (token == end)
            written.append(token)
            if finished.all():  # one host sync a token: text ends when it likes, and answers are short
                break
            state.advance(embed(token))
        rows = torch.stack(written, dim=1).tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]


def _check_seeds(prompts: Sequence[Document], seeds: Sequence[int]) -> None:
    # Broadcasting would share a single seed out among all prompts.
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts came with {len(seeds)} seeds; give one seed a prompt")
