"""From the image encoder's patches to the LM's places (VILA, sections 2 and 3.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vilau_unified_lm.vila.config import VilaProjectorConfig


class VilaProjector(nn.Module):
    """Patches float [P, h, w, C] -> LM inputs float [P, T, hidden], T = ceil(h / f) · ceil(w / f) places, row-major.

    With f = 2, `neighbours_joined` and a layer norm come before the linear layer or the MLP, as in VILA's
    `mlp_downsample`. (Its code orders the joined places column by column. Nothing follows from the order: patches
    carry their position.) Initialisation: PyTorch's layers.
    """

    def __init__(self, config: VilaProjectorConfig, width: int, hidden: int) -> None:
        super().__init__()
        self.factor = config.downsample
        inputs = width * self.factor**2
        norm = [nn.LayerNorm(inputs)] if self.factor > 1 else []
        second = [nn.GELU(), nn.Linear(hidden, hidden)] if config.kind == "mlp" else []
        self.layers = nn.Sequential(*norm, nn.Linear(inputs, hidden), *second)

    def places(self, grid: tuple[int, int]) -> int:
        """T: the LM's places for a picture of h × w patches."""
        return -(-grid[0] // self.factor) * -(-grid[1] // self.factor)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(neighbours_joined(features, self.factor).flatten(1, 2))


def neighbours_joined(features: Tensor, factor: int) -> Tensor:
    """float [P, h, w, C] -> [P, ceil(h / f), ceil(w / f), f · f · C]: blocks of neighbours, each row-major.

    Zeros stand where a block goes beyond the grid.
    """
    pictures, height, width, channels = features.shape
    padded = F.pad(features, (0, 0, 0, -width % factor, 0, -height % factor))
    rows, columns = padded.shape[1] // factor, padded.shape[2] // factor
    blocks = padded.reshape(pictures, rows, factor, columns, factor, channels)
    return blocks.transpose(2, 3).flatten(3)
