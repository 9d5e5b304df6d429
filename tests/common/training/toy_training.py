"""A task small enough to train in milliseconds, a loader that saves its position, and what runs in a child."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vilau_common import atomic
from vilau_common.run import RunDirectory
from vilau_common.training import (
    OptimizerConfig,
    ParameterGroup,
    ScheduleConfig,
    StepOutput,
    Task,
    TrainingConfig,
    TrainingInterrupted,
    TrainingResult,
    train,
)
from vilau_common.training import checkpoint as checkpoints

WIDTH = 8


class ToyLoader:
    """Endless random batches {"x": [B, WIDTH], "y": [B, 1]}; part `part` of `parts` of each joint batch."""

    def __init__(self, batch_size: int = 4, part: int = 0, parts: int = 1) -> None:
        self.batch_size, self.part, self.parts = batch_size, part, parts
        self.batches = 0
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            x = torch.randn(self.batch_size, WIDTH, generator=self.generator).chunk(self.parts)[self.part]
            self.batches += 1
            yield {"x": x, "y": x.sum(1, keepdim=True).sin()}

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]
        self.generator.set_state(state["generator"])


class ToyNetwork(nn.Module):
    """An MLP with dropout and a buffer that follows the steps."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 16)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(16, 1)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.dropout(self.first(x).tanh()))


class ToyTask(Task):
    """Regression; `sleep` seconds a step, so that there is time to be interrupted in."""

    def __init__(self, dropout: float = 0.1, sleep: float = 0.0) -> None:
        torch.manual_seed(0)
        self.network = ToyNetwork(dropout)
        self.sleep = sleep

    def parameter_groups(self) -> list[ParameterGroup]:
        weights = list(self.network.parameters())
        return [
            ParameterGroup(name="matrices", parameters=[w for w in weights if w.ndim == 2], matrices=True),
            ParameterGroup(name="vectors", parameters=[w for w in weights if w.ndim == 1], weight_decay=0.0),
        ]

    def training_step(self, network: nn.Module, batch: dict[str, Tensor], step: int) -> StepOutput:
        time.sleep(self.sleep)
        loss = (network(batch["x"]) - batch["y"]).square().mean()
        return StepOutput({"main": loss}, {"noise": torch.rand(()), "step": float(step)})

    def batch_size(self, batch: dict[str, Tensor]) -> int:
        return len(batch["x"])

    def after_step(self, step: int) -> None:
        self.network.seen.fill_(step)

    def evaluate(self) -> dict[str, float]:
        return {"bias": self.network.second.bias.item(), "random": torch.rand(()).item()}

    def save_samples(self, directory: Path, step: int) -> None:
        (directory / "sample.txt").write_text(str(step), encoding="utf-8")

    def save_model(self, directory: Path) -> None:
        save_file(self.network.state_dict(), directory / "model.safetensors")


def toy_config(**changes: Any) -> TrainingConfig:
    """All of the loop's state in play: both optimisers, averaged weights, a schedule, accumulation."""
    settings: dict[str, Any] = {
        "steps": 40,
        "accumulation": 2,
        "log_every": 3,
        "evaluate_every": 10,
        "sample_every": 20,
        "checkpoint_every": 5,
        "ema_decay": 0.9,
        "optimizer": OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.1),
        "schedule": ScheduleConfig(kind="cosine", warmup_steps=5),
    }
    return TrainingConfig(**{**settings, **changes})


def run_toy(path: Path, config: TrainingConfig | None = None, task: Task | None = None) -> TrainingResult:
    """Train the toy task in `path`, or go on there."""
    return train(task or ToyTask(), ToyLoader(), config or toy_config(), RunDirectory(path), stage="toy")


# --- What tests look at -----------------------------------------------------------------------------------------


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


# --- What runs in child processes -------------------------------------------------------------------------------


def child_run(path: Path, config: TrainingConfig | None, task: Task | None = None) -> None:
    """Train; exit as an entry point does."""
    torch.set_num_threads(1)
    try:
        run_toy(path, config, task)
    except TrainingInterrupted as interrupted:
        raise SystemExit(interrupted.exit_status) from None


def child_slow_run(path: Path, sleep: float) -> None:
    """Train with pauses."""
    child_run(path, toy_config(), ToyTask(sleep=sleep))


def child_killed_in_checkpoint(path: Path, moment: str, number: int) -> None:
    """Train, and die by SIGKILL at a moment of the `number`-th checkpoint's writing."""
    passed = 0

    def die_if_due() -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            os.kill(os.getpid(), signal.SIGKILL)

    real_save, real_commit, real_prune = checkpoints.save_file, atomic.commit_directory, checkpoints._prune

    def dying_save(tensors: dict[str, Tensor], file: Path) -> None:
        if file.name == checkpoints.WEIGHTS:
            file.write_bytes(b"half")
            die_if_due()
        real_save(tensors, file)

    def dying_commit(directory: Path) -> None:
        if directory.parent.name == "checkpoints":
            die_if_due()
        real_commit(directory)

    def dying_prune(directory: Path, step: int, keep: int) -> None:
        die_if_due()
        real_prune(directory, step, keep)

    if moment == "while writing":
        checkpoints.save_file = dying_save
    elif moment == "before renaming":
        atomic.commit_directory = dying_commit
    else:
        checkpoints._prune = dying_prune
    child_run(path, None)
