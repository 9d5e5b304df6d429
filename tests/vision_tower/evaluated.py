"""Batches as an evaluation makes them, of random pictures and embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vilau_vision_tower.evaluation.metric import EvaluatedBatch, Metric
from vilau_vision_tower.evaluation.pictures import EvaluatedPicture

SIDE, WIDTH = 24, 16


def batch_of(
    size: int,
    captions: Sequence[list[str]] | None = None,
    labels: Sequence[int | str | None] | None = None,
    **tensors: Tensor,
) -> EvaluatedBatch:
    """Random pictures and all that a tower makes of them; `tensors` are taken as given."""
    images = torch.rand(size, 3, SIDE, SIDE) * 2 - 1
    made = {
        "images": images,
        "reconstructions": (images + 0.3 * torch.randn_like(images)).clamp(-1, 1),
        "codes": torch.randint(8, (size, 2, 2, 3)),
        "embeddings": F.normalize(torch.randn(size, WIDTH), dim=-1),
        **tensors,
    }
    pictures = [
        EvaluatedPicture(
            name=str(index),
            image=torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8).numpy(),
            captions=captions[index] if captions else [],
            label=labels[index] if labels else None,
            scene=None,
        )
        for index in range(size)
    ]
    return EvaluatedBatch(pictures, **made)


def in_parts(batch: EvaluatedBatch, size: int) -> list[EvaluatedBatch]:
    """The same pictures in smaller batches."""
    parts = []
    for start in range(0, len(batch.pictures), size):
        some = slice(start, start + size)
        tensors = {name: value[some] for name, value in vars(batch).items() if name != "pictures"}
        parts.append(EvaluatedBatch(batch.pictures[some], **tensors))
    return parts


def numbers(metric: Metric, *batches: EvaluatedBatch) -> dict[str, float]:
    """What the metric says after these batches."""
    for batch in batches:
        metric.update(batch)
    return metric.result()


class Texts:
    """A text encoder that gives every text a unit vector of its own, or the one that it is told."""

    def __init__(self, known: dict[str, Tensor] | None = None) -> None:
        self.known = dict(known or {})
        self.calls: list[int] = []

    def embed(self, texts: list[str]) -> Tensor:
        self.calls.append(len(texts))
        for text in texts:
            self.known.setdefault(text, F.normalize(torch.randn(WIDTH), dim=0))
        return torch.stack([self.known[text] for text in texts])
