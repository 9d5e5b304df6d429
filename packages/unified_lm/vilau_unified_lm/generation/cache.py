"""Keys and values of one batch, in memory allocated once.

In transformers' caches all rows write their next token at the same place. Here every row writes at a place of its own:
one writes text while another draws, and guidance's unconditional rows go back to their prompt for each new picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass
class Slots:
    """Where the next step writes, and how far it reads."""

    rows: Tensor  # int64 [R], 0 to R - 1
    place: Tensor  # int64 [R], the slot that each row's next token takes
    capacity: int  # slots of a row
    visible: int  # of these, how many a step reads; its attention mask has as many
    fresh: int | None = (
        None  # the one that comes into view with this step; None: memory is clean, or none does
    )


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, float [R, capacity, heads, head width]."""

    is_sliding = False  # as in training, every layer sees all of its document

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for states of this kind, float [R, heads, T, head width]."""
        slots = self.slots
        shapes = [(len(x), slots.capacity, x.shape[1], x.shape[3]) for x in (key_states, value_states)]
        # Slots that a row has not come to are masked, but a masked NaN is still a NaN. Cleaning memory takes it from
        # the system; where steps do not read all of it, it is left to them, and what is never reached costs nothing.
        whole = slots.visible == slots.capacity
        new = torch.zeros if whole else torch.empty
        self.keys = new(shapes[0], dtype=key_states.dtype, device=key_states.device)
        self.values = new(shapes[1], dtype=value_states.dtype, device=value_states.device)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store float [R, heads, T, head width] and return what is read, the same with more places.

        T > 1: prompts, which fill the first T slots and read themselves. T = 1: the next token of each row.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots, length = self.slots, key_states.shape[2]
        if length > 1:
            self.keys[:, :length] = key_states.transpose(1, 2)
            self.values[:, :length] = value_states.transpose(1, 2)
            return key_states, value_states
        for memory, states in ((self.keys, key_states), (self.values, value_states)):
            if slots.fresh is not None:
                memory[:, slots.fresh] = 0
            memory[slots.rows, slots.place] = states[:, :, 0]
        read = slots.visible
        return self.keys[:, :read].transpose(1, 2), self.values[:, :read].transpose(1, 2)

    def get_seq_length(self) -> int:
        """Slots that a step reads. The engine says itself which of them a row may look at, and at which position."""
        return self.slots.visible

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.visible, 0

    def get_max_length(self) -> int:
        return self.slots.capacity


def slot_cache(rows: int, capacity: int, device: torch.device) -> tuple[Cache, Slots]:
    """An empty cache for `rows` rows of `capacity` places; memory is taken when the first states come."""
    slots = Slots(
        rows=torch.arange(rows, device=device),
        place=torch.zeros(rows, dtype=torch.long, device=device),
        capacity=capacity,
        visible=capacity,
    )
    return Cache(layer_class_to_replicate=partial(SlotLayer, slots)), slots
