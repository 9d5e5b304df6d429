"""How codebooks follow the data: moving averages (as published), or gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vilau_common import distributed
from vilau_vision_tower.quantizer.residual import QuantizerConfig, ResidualQuantizer

# Laplace smoothing of the moving counts, as in the EMA codebooks of VQ-VAE-2: keeps a nearly unused code finite.
COUNT_EPSILON = 1e-5


class EmaResidualQuantizer(ResidualQuantizer):
    """Each code is the moving average of the vectors assigned to it (van den Oord et al. 2017, appendix A.1).

    The buffer `sums` [S, K, code_width] is the moving average of their sums.
    """

    sums: Tensor

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__(config, width)
        self.register_buffer("sums", torch.zeros_like(self.codebooks))

    def register_codebooks(self, codebooks: Tensor) -> None:
        self.register_buffer("codebooks", codebooks)

    @torch.no_grad()
    def set_codebooks(self, codebooks: Tensor, count: float = 1.0) -> None:
        super().set_codebooks(codebooks, count)
        self.sums.copy_(count * codebooks)

    @torch.no_grad()
    def move_codebook(self, book: int, sums: Tensor, dead: Tensor, fresh: Tensor, count: float) -> None:
        decay = self.config.ema_decay
        dead = dead.unsqueeze(-1)
        # Both in one sum over ranks.
        step = distributed.sum_(torch.where(dead, count * fresh, (1 - decay) * sums))
        self.sums[book].mul_(decay).masked_fill_(dead, 0.0).add_(step)
        counts = self.counts[book]
        total = counts.sum()
        smoothed = (counts + COUNT_EPSILON) / (total + len(counts) * COUNT_EPSILON) * total
        torch.div(self.sums[book], smoothed.unsqueeze(-1), out=self.codebooks[book])

    def codebook_loss(self, vectors: Tensor, codes: Tensor) -> Tensor:
        return vectors.new_zeros(())


class GradientResidualQuantizer(ResidualQuantizer):
    """Codes are parameters: mean over cumulative depths of |sg(z) - z_q^(d)|^2 (the codebook loss of VQ-VAE).

    A code that restarts keeps what the optimiser knows of it.
    """

    def register_codebooks(self, codebooks: Tensor) -> None:
        self.codebooks = nn.Parameter(codebooks)

    @torch.no_grad()
    def move_codebook(self, book: int, sums: Tensor, dead: Tensor, fresh: Tensor, count: float) -> None:
        dead = dead.unsqueeze(-1)
        self.codebooks[book] = torch.where(dead, distributed.sum_(fresh), self.codebooks[book])

    def codebook_loss(self, vectors: Tensor, codes: Tensor) -> Tensor:
        partial_sums = self.embed(codes).cumsum(dim=-2)
        return (vectors.unsqueeze(-2) - partial_sums).square().mean()
