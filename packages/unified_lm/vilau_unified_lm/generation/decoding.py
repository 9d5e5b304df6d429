"""The LM's axis of generation: one place after another behind cached keys and values, and text written on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from vilau_unified_lm.generation.sampling import Sampling, sample, uniform_draws
from vilau_unified_lm.packing import MixedSequence


class Decoding:
    """The state of one batch on the LM's axis: keys and values so far, and the newest hidden state of each row."""

    def __init__(self, llm: PreTrainedModel, prompts: MixedSequence, inputs: Tensor) -> None:
        """prompts: left-padded, one a row; inputs float [B, L, hidden]: what the LM reads of them."""
        self.llm = llm
        self.cache = DynamicCache(config=llm.config)
        self.mask = (prompts.document_ids > 0).long()
        self.position = prompts.position_ids[:, -1:]
        self.hidden = self._forward(inputs, prompts.position_ids)

    def advance(self, inputs: Tensor) -> None:
        """One more place: inputs float [B, hidden]."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.position = self.position + 1
        self.hidden = self._forward(inputs.unsqueeze(1), self.position)

    def _forward(self, inputs: Tensor, position_ids: Tensor) -> Tensor:
        output = self.llm.get_decoder()(
            inputs_embeds=inputs,
            attention_mask=self.mask,
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden


def write_text(
    state: Decoding, end: int, max_tokens: int, sampling: Sampling, seeds: Sequence[int]
) -> list[list[int]]:
    """Text ids after each prompt, without the closing `end`; at most `max_tokens`. Guidance does not apply."""
    uniform = uniform_draws(seeds, max_tokens, state.hidden.device)
    embed, head = state.llm.get_input_embeddings(), state.llm.get_output_embeddings()
    written: list[Tensor] = []
    finished = torch.zeros(len(seeds), dtype=torch.bool, device=state.hidden.device)
    for step in range(max_tokens):
        token = sample(head(state.hidden), uniform[:, step], sampling)
        token = token.masked_fill(finished, end)
        finished = finished | (token == end)
        written.append(token)
        if finished.all():  # one host sync a token: text ends when it likes, and answers are short
            break
        state.advance(embed(token))
    rows = torch.stack(written, dim=1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]
