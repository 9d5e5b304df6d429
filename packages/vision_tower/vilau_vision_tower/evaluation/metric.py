"""What every metric is: it takes in evaluated batches one by one, and says its numbers at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vilau_common.errors import UserError
from vilau_vision_tower.evaluation.pictures import EvaluatedPicture


class NotComputed(UserError):
    """A metric has no weights, no texts or no labels to be computed with; its sentence says what it lacks."""


@dataclass
class EvaluatedBatch:
    pictures: Sequence[EvaluatedPicture]  # B of them
    images: Tensor  # float32 [B, 3, H, W] in [-1, 1]
    reconstructions: Tensor  # float32 [B, 3, H, W] in [-1, 1]
    codes: Tensor  # int64 [B, h, w, D]
    embeddings: Tensor  # float32 [B, C], unit length: of the quantised features


class Metric(ABC):
    """Memory does not grow with the number of pictures, or only up to a limit of the configuration."""

    @abstractmethod
    def update(self, batch: EvaluatedBatch) -> None:
        """Take a batch in."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """The numbers over all batches. Raises NotComputed where the pictures had not what the metric needs."""


class Mean:
    """A running mean in float64."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        """values: any shape, each counts once."""
        self.total += float(values.double().sum())
        self.count += values.numel()

    def value(self) -> float:
        """The mean of all values so far, of which there must be one."""
        return self.total / self.count


def shares_within(found: Sequence[Tensor], limits: Sequence[int]) -> list[float]:
    """The share of ranks below each limit; found: int64 tensors of ranks."""
    joint = torch.cat(list(found))
    return [float((joint < limit).double().mean()) for limit in limits]
