"""How evenly the codes are used, by depth."""

from __future__ import annotations

import torch
from torch import Tensor

from vilau_vision_tower.evaluation.metric import EvaluatedBatch, Metric


class CodebookMetrics(Metric):
    """By depth d, over all positions of all pictures:

    codebook_usage_d    share of the K codes that occur
    dead_codes_d        how many do not
    codebook_entropy_d  H = -sum_k p_k log2 p_k, in bits; log2 K where all occur equally often
    codebook_perplexity_d  2^H, the number of equally frequent codes that would tell as much
    """

    def __init__(self, codebook_size: int, depth: int) -> None:
        self.counts = torch.zeros(depth, codebook_size, dtype=torch.int64)

    def update(self, batch: EvaluatedBatch) -> None:
        self.add(batch.codes)

    def add(self, codes: Tensor) -> None:
        """codes: int64 [..., D]."""
        depth, size = self.counts.shape
        for d in range(depth):
            self.counts[d] += torch.bincount(codes[..., d].flatten(), minlength=size).cpu()

    def result(self) -> dict[str, float]:
        size = self.counts.shape[1]
        numbers: dict[str, float] = {}
        for d, counts in enumerate(self.counts):
            used = int((counts > 0).sum())
            shares = counts[counts > 0].double() / counts.sum()
            entropy = float(-(shares * shares.log2()).sum())
            numbers[f"codebook_usage_d{d}"] = used / size
            numbers[f"dead_codes_d{d}"] = size - used
            numbers[f"codebook_entropy_d{d}"] = entropy
            numbers[f"codebook_perplexity_d{d}"] = 2**entropy
        return numbers
