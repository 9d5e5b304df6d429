"""The vectors of all ranks as one batch: rank 0's rows, then rank 1's, and so on.

Codebooks start and restart at random vectors of the joint batch. Rank 0 draws which and tells the others; each rank
fills in the rows that it owns, zeros elsewhere, and a sum over ranks puts them together. So all ranks hold the same
codebooks, those of a single process with the joint batch and rank 0's random numbers. Nothing here waits for a GPU.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from vilau_common import distributed


class JointBatch:
    """This rank's part, float [N, C], of the joint batch; every rank must bring as many vectors."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.size = len(vectors) * distributed.world_size()

    def random_order(self) -> Tensor:
        """int64 [size]: the joint batch's indices, shuffled by rank 0's random numbers."""
        device = self.vectors.device
        if distributed.is_main():
            order = torch.randperm(self.size, device=device)
        else:
            order = torch.empty(self.size, dtype=torch.int64, device=device)
        if distributed.world_size() > 1:
            dist.broadcast(order, src=0)
        return order

    def share(self, indices: Tensor) -> Tensor:
        """int64 [M] into the joint batch -> float [M, C]: the rows that this rank owns, zeros for the others'.

        The sum over ranks is the joint batch's rows.
        """
        rows = indices - distributed.rank() * len(self.vectors)
        own = (rows >= 0) & (rows < len(self.vectors))
        return self.vectors[rows.clamp(0, len(self.vectors) - 1)] * own.unsqueeze(-1)

    def rows(self, indices: Tensor) -> Tensor:
        """int64 [M] into the joint batch -> float [M, C]: its rows, on every rank."""
        return distributed.sum_(self.share(indices))

    def own(self, indices: Tensor) -> Tensor:
        """int64 [M] into the joint batch -> float [any number, C]: those that this rank owns. Waits for a GPU."""
        rows = indices - distributed.rank() * len(self.vectors)
        return self.vectors[rows[(rows >= 0) & (rows < len(self.vectors))]]


def cluster(vectors: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many of this rank's vectors have each code, float [size], and their sums, float [size, C].

    vectors: float [N, C]; codes: int64 [N]. (`bincount` would wait for a GPU.)
    """
    counts = vectors.new_zeros(size).index_add_(0, codes, vectors.new_ones(len(codes)))
    sums = vectors.new_zeros(size, vectors.shape[-1]).index_add_(0, codes, vectors)
    return counts, sums
