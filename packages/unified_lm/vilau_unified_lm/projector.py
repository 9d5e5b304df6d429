"""From visual features to the LM's width: a GELU MLP, of two layers in VILA-U (section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vilau_common.errors import UserError


class Projector(nn.Module):
    """Summed code embeddings float [N, C] -> LM inputs float [N, hidden].

    layers: linear ones, with GELU between; 0 takes features as they are, which must then be as wide as the LM.
    With `grid`, learned embeddings of row and column are added. Initialisation: PyTorch's linear layers;
    row and column embeddings normal with standard deviation `std`.
    """

    def __init__(
        self, width: int, hidden: int, layers: int, grid: tuple[int, int] | None, std: float
    ) -> None:
        super().__init__()
        if layers < 0 or (layers == 0 and width != hidden):
            raise UserError(
                f"projector_layers is {layers}; between features of {width} and hidden states of {hidden} there "
                "must be at least 1"
            )
        modules: list[nn.Module] = []
        for layer in range(layers):
            modules += [nn.Linear(hidden if layer else width, hidden), nn.GELU()]
        self.mlp = nn.Sequential(*modules[:-1])
        self.grid = grid
        if grid is not None:
            self.rows = nn.Parameter(torch.randn(grid[0], hidden) * std)
            self.columns = nn.Parameter(torch.randn(grid[1], hidden) * std)

    def forward(self, features: Tensor, grid_index: Tensor) -> Tensor:
        """features float [N, C]; grid_index int64 [N], row-major place of each visual position in its image."""
        for weight in self.mlp.parameters():
            features = features.to(weight.dtype)  # quantised ones stay in float32
            break
        projected = self.mlp(features)
        if self.grid is None:
            return projected
        return projected + self.rows[grid_index // self.grid[1]] + self.columns[grid_index % self.grid[1]]
