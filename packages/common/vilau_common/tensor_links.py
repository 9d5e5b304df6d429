"""The same weights in two layouts: which of their tensors each of ours is made of, and back, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Link:
    """join: the tensors named `theirs`, in that order -> the one named `ours`; split: back."""

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor], Sequence[Tensor]]

    def their_shapes(self, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """The shapes of theirs where ours has this one."""
        parts = self.split(torch.empty(tuple(shape), device="meta"))
        return {name: tuple(part.shape) for name, part in zip(self.theirs, parts, strict=True)}


def renamed(ours: str, theirs: str) -> Link:
    """The same tensor."""
    return Link(ours, (theirs,), lambda parts: parts[0], lambda tensor: [tensor])


def concatenated(ours: str, theirs: Sequence[str]) -> Link:
    """Parts of equal size, one after the other along the first dimension."""
    return Link(
        ours,
        tuple(theirs),
        lambda parts: torch.cat(list(parts)),
        lambda tensor: tensor.chunk(len(theirs)),
    )


def stacked(ours: str, theirs: Sequence[str]) -> Link:
    """Parts of one shape, along a first dimension of their own."""
    return Link(ours, tuple(theirs), lambda parts: torch.stack(list(parts)), lambda tensor: tensor.unbind())


def stacked_without_last_row(ours: str, theirs: Sequence[str]) -> Link:
    """Like `stacked`, but theirs have one row more, an embedding's padding, which comes back as zeros."""
    return Link(
        ours,
        tuple(theirs),
        lambda parts: torch.stack([part[:-1] for part in parts]),
        lambda tensor: [F.pad(part, (0, 0, 0, 1)) for part in tensor],
    )


def unsqueezed(ours: str, theirs: str) -> Link:
    """Theirs has a first dimension of one more."""
    return Link(ours, (theirs,), lambda parts: parts[0].squeeze(0), lambda tensor: [tensor.unsqueeze(0)])
