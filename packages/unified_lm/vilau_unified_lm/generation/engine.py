"""The engine that draws and answers: one LM step per place and D depth steps per visual position, all cached.

Weights are one class (`UnifiedLM`), generation another: an engine holds no state between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vilau_unified_lm.document import Document
from vilau_unified_lm.generation.decoding import Decoding, write_text
from vilau_unified_lm.generation.prompts import left_padded
from vilau_unified_lm.generation.sampling import Sampling, guided, sample, uniform_draws
from vilau_unified_lm.model import UnifiedLM

GREEDY = Sampling(temperature=0, top_k=None, top_p=1.0, guidance=1.0)


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
        _check_seeds(prompts, seeds)
        tower, depths = self.tokenizer, self.tokenizer.depth
        height, width = tower.grid
        guide = sampling.guidance != 1
        rows = [*prompts, *([blank] * len(prompts))] if guide else list(prompts)
        state = self._begin(rows, height * width)
        uniform = uniform_draws(seeds, height * width * depths, state.hidden.device).unflatten(
            1, (-1, depths)
        )
        drawn: list[Tensor] = []
        for place in range(height * width):
            codes = self._draw_position(state.hidden, uniform[:, place], sampling)
            drawn.append(codes)
            if on_position is not None:
                on_position(place)
            if place + 1 < height * width:
                features = tower.embed_codes(codes).sum(dim=-2)
                index = torch.full((len(codes),), place, device=codes.device)
                inputs = self.model.projector(features, index)
                state.advance(inputs.repeat(2, 1) if guide else inputs)
        return torch.stack(drawn, dim=1).view(len(prompts), height, width, depths)

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
        return write_text(self._begin(prompts, max_tokens), end, max_tokens, sampling, seeds)

    def _begin(self, prompts: Sequence[Document], to_come: int) -> Decoding:
        """The prompts read, with room for `to_come` more places."""
        model = self.model
        context = int(model.config.backbone_config.max_position_embeddings)
        batch = left_padded(prompts, self.tokenizer.depth, context, to_come).to(model.device)
        features = self.tokenizer.embed_codes(batch.codes).sum(dim=-2)
        return Decoding(model.llm, batch, model.embed(batch, features))


def _check_seeds(prompts: Sequence[Document], seeds: Sequence[int]) -> None:
    # Broadcasting would share a single seed out among all prompts.
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts came with {len(seeds)} seeds; give one seed a prompt")
