"""The LM's axis of generation: one place after another behind cached keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vilau_unified_lm.generation.cache import slot_cache
from vilau_unified_lm.generation.graph import Graph
from vilau_unified_lm.packing import MixedSequence, packed_attention_mask

SDPA = "sdpa"


@contextmanager
def dense_attention(llm: PreTrainedModel) -> Iterator[None]:
    """The attention kernels that read generation's boolean masks, whichever training has chosen; then those again."""
    chosen = llm.config._attn_implementation
    if chosen != SDPA:
        llm.set_attn_implementation(SDPA)
    try:
        yield
    finally:
        if chosen != SDPA:
            llm.set_attn_implementation(chosen)


class Decoding:
    """The state of one batch: keys and values so far, and each row's newest hidden state.

    static: every step reads all `capacity` places, so that its shapes never change; else only those in use.
    """

    def __init__(self, llm: PreTrainedModel, rows: int, capacity: int, static: bool = False) -> None:
        """llm: any causal LM of transformers. rows: R. capacity: places of the longest prompt and all that follows."""
        self.llm = llm
        self.static = static
        self.cache, self.slots = slot_cache(rows, capacity, llm.device)
        self.first = torch.zeros_like(self.slots.place)  # where each row's prompt begins, behind its padding
        self.hidden: Tensor  # float [R, hidden]
        self._step: Callable[[Tensor], Tensor] = self._forward

    @classmethod
    def of(cls, llm: PreTrainedModel, prompts: MixedSequence, inputs: Tensor, room: int) -> Decoding:
        """A batch that has read its prompts and may take `room` more places; see `begin`."""
        rows, length = prompts.document_ids.shape
        state = cls(llm, rows, length + room)
        state.begin(prompts, inputs)
        return state

    def begin(self, prompts: MixedSequence, inputs: Tensor) -> None:
        """Read prompts, left-padded and one a row; inputs float [R, L, hidden]: what the LM reads of them."""
        slots = self.slots
        slots.visible, slots.fresh = slots.capacity if self.static else prompts.document_ids.shape[1], None
        self.prompt_length = prompts.document_ids.shape[1]
        self.first.copy_((prompts.document_ids == 0).sum(dim=1))
        slots.place.zero_()
        mask = packed_attention_mask(prompts.document_ids, prompts.branch_ids)
        if self.prompt_length == 1:  # written as a step is
            mask = mask[..., :1].expand(-1, -1, -1, slots.visible) & (self._places() == 0)
        self.hidden = self._read(inputs, mask, prompts.position_ids)
        slots.place.fill_(self.prompt_length)

    def advance(self, inputs: Tensor, moves: Tensor | None = None) -> None:
        """One more place: inputs float [R, hidden].

        moves: int64 [R], 0 for rows whose input is nothing to them (it is overwritten by their next one), 1 for the
        others; None: 1 for all.
        """
        slots = self.slots
        if not self.static:
            slots.fresh = slots.visible if slots.visible < slots.capacity else None
            slots.visible = min(slots.visible + 1, slots.capacity)
        self.hidden = self._step(inputs)
        slots.place.add_(1 if moves is None else moves)

    def rewind(self, rows: Tensor) -> None:
        """Forget all but the prompt, and of it the last token, in these rows: bool [R]."""
        self.slots.place.masked_fill_(rows, self.prompt_length - 1)

    def capture(self) -> None:
        """From now on, a step is one CUDA graph. After `begin`: it allocates the memory that the graph uses."""
        assert self.static, "the shapes of a captured step must not change"
        self._step = Graph(self._forward, torch.zeros_like(self.hidden))

    @property
    def captured(self) -> bool:
        return isinstance(self._step, Graph)

    def _forward(self, inputs: Tensor) -> Tensor:
        """Hidden states float [R, hidden] after inputs float [R, hidden]; leaves `place` alone."""
        slots = self.slots
        # Rows that are done may have come to the end; what they write is never read.
        place = slots.place.clamp_(max=slots.capacity - 1).unsqueeze(1)
        first, places = self.first.unsqueeze(1), self._places()
        mask = (places >= first) & (places <= place)
        return self._read(inputs.unsqueeze(1), mask[:, None, None], place - first)

    def _read(self, inputs: Tensor, mask: Tensor, position_ids: Tensor) -> Tensor:
        output = self.llm.get_decoder()(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden

    def _places(self) -> Tensor:
        return torch.arange(self.slots.visible, device=self.first.device)
