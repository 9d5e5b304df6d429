"""From visual features to the LM's width: a two-layer GELU MLP (VILA-U, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projector(nn.Module):
    """Summed code embeddings float [N, C] -> LM inputs float [N, hidden].

    With `grid`, learned embeddings of row and column are added. Initialisation: PyTorch's linear layers;
    row and column embeddings normal with standard deviation `std`.
    """

    def __init__(self, width: int, hidden: int, grid: tuple[int, int] | None, std: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.grid = grid
        if grid is not None:
            self.rows = nn.Parameter(torch.randn(grid[0], hidden) * std)
            self.columns = nn.Parameter(torch.randn(grid[1], hidden) * std)

    def forward(self, features: Tensor, grid_index: Tensor) -> Tensor:
        """features float [N, C]; grid_index int64 [N], row-major place of each visual position in its image."""
        projected = self.mlp(features)
        if self.grid is None:
            return projected
        return projected + self.rows[grid_index // self.grid[1]] + self.columns[grid_index % self.grid[1]]
