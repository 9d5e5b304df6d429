"""What runs leave behind, to be compared bit for bit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vilau_common.training import checkpoint as checkpoints


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The run's metrics without the times."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


@dataclass
class EndState:
    """All that a run leaves behind, to be compared bit for bit."""

    metrics: list[dict[str, Any]]
    checkpoint: checkpoints.Checkpoint
    model: dict[str, Tensor]

    @staticmethod
    def of(path: Path) -> EndState:
        newest = checkpoints.newest_good(path / "checkpoints")
        assert newest is not None
        saved = checkpoints.read(newest, lambda path, trainer: None)
        for name in ("seconds", "metrics_bytes"):  # they count times and their digits
            del saved.trainer[name]
        return EndState(lines_of(path), saved, load_file(path / "model" / "model.safetensors"))

    def assert_equal(self, other: EndState) -> None:
        assert self.metrics == other.metrics
        for name in ("trainer", "weights", "average", "optimizers", "process"):
            assert_same(getattr(self.checkpoint, name), getattr(other.checkpoint, name), name)
        assert_same(self.model, other.model, "model")


def assert_same(left: Any, right: Any, where: str) -> None:
    """Equal structures of equal values, tensors to the last bit."""
    assert type(left) is type(right), where
    if isinstance(left, Tensor):
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    else:
        assert left == right, where
