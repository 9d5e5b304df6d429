"""Tasks small enough to train in milliseconds, and a loader that saves its position."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vilau_common import distributed
from vilau_common.run import RunDirectory
from vilau_common.training import (
    OptimizerConfig,
    ParameterGroup,
    ScheduleConfig,
    Sharding,
    StepOutput,
    Task,
    TrainingConfig,
    TrainingResult,
    train,
)

WIDTH = 8


class ToyLoader:
    """Endless random batches {"x": [B, WIDTH], "y": [B, 1]}; part `part` of `parts` of each joint batch."""

    def __init__(self, batch_size: int = 4, part: int = 0, parts: int = 1) -> None:
        self.batch_size, self.part, self.parts = batch_size, part, parts
        self.batches = 0
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        torch.rand(())  # torch's DataLoader, too, takes a number when its iteration begins
        while True:
            x = torch.randn(self.batch_size, WIDTH, generator=self.generator).chunk(self.parts)[self.part]
            self.batches += 1
            yield {"x": x, "y": x.sum(1, keepdim=True).sin()}

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]
        self.generator.set_state(state["generator"])


class PartsLoader(ToyLoader):
    """What the processes of `parts` get, one after the other: their batches make up one process's accumulation.

    Like theirs where another number of processes went before, it begins anew at every start.
    """

    def __init__(self, batch_size: int, parts: int) -> None:
        super().__init__(batch_size)
        self.pieces = parts

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in super().__iter__():
            for part in range(self.pieces):
                yield {name: value.chunk(self.pieces)[part] for name, value in batch.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


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
    """Regression; FSDP gathers its first layer apart from the rest.

    `sleep`: seconds a step takes longer, so that there is time to be interrupted in.
    """

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

    def sharding(self) -> Sharding:
        return Sharding(layers=[self.network.first])

    def training_step(self, network: nn.Module, batch: dict[str, Tensor], step: int) -> StepOutput:
        time.sleep(self.sleep)
        loss = (network(batch["x"]) - batch["y"]).square().mean()
        return StepOutput({"main": loss}, {"noise": torch.rand(()), "step": float(step)})

    def batch_size(self, batch: dict[str, Tensor]) -> int:
        return len(batch["x"])

    def after_step(self, step: int) -> None:
        self.network.seen.fill_(step)

    def evaluate(self) -> dict[str, float]:
        return {"mean": self.network(torch.ones(1, WIDTH)).item(), "random": torch.rand(()).item()}

    def save_samples(self, directory: Path, step: int) -> None:
        (directory / "sample.txt").write_text(str(step), encoding="utf-8")

    def save_model(self, directory: Path) -> None:
        save_file(self.network.state_dict(), directory / "model.safetensors")


class UnevenTask(ToyTask):
    """A mean over the samples above zero, of which batches hold unequal numbers, or none."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)

    def before_step(self, batches: Sequence[dict[str, Tensor]]) -> None:
        total = distributed.sum_(torch.stack([(batch["y"] > 0).sum() for batch in batches]).sum())
        self.scale = len(batches) * distributed.world_size() / total

    def training_step(self, network: nn.Module, batch: dict[str, Tensor], step: int) -> StepOutput:
        errors = (network(batch["x"]) - batch["y"]).square()
        return StepOutput({"main": errors[batch["y"] > 0].sum() * self.scale})


class StoppingTask(ToyTask):
    """Sends a signal to its own process in the middle of a step."""

    def __init__(self, step: int, number: int, dropout: float = 0.1) -> None:
        super().__init__(dropout)
        self.stop_step, self.number = step, number

    def training_step(self, network: nn.Module, batch: dict[str, Tensor], step: int) -> StepOutput:
        if step == self.stop_step:
            os.kill(os.getpid(), self.number)
        return super().training_step(network, batch, step)


class FailingTask(ToyTask):
    """Its loss is not finite at one step."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__()
        self.bad_step, self.value = step, value

    def training_step(self, network: nn.Module, batch: dict[str, Tensor], step: int) -> StepOutput:
        output = super().training_step(network, batch, step)
        if step == self.bad_step:
            return StepOutput({"main": output.losses["main"] * self.value})
        return output


class GanNetwork(nn.Module):
    """A generator and a discriminator that each loss goes through in part."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Linear(WIDTH, 1)
        self.discriminator = nn.Linear(1, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(fake, its score with a way back to the generator, real score minus fake score without one)."""
        fake = self.generator(x)
        apart = self.discriminator(y) - self.discriminator(fake.detach())
        return fake, self.discriminator(fake), apart


class GanTask(ToyTask):
    """Two losses, two optimisers; the discriminator begins at step `begin`."""

    unit = "pairs"
    sharding = Task.sharding

    def __init__(self, begin: int = 0) -> None:
        super().__init__()
        self.network = GanNetwork()
        self.begin = begin

    def parameter_groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup(name="generator", parameters=list(self.network.generator.parameters())),
            ParameterGroup(
                name="discriminator",
                parameters=list(self.network.discriminator.parameters()),
                optimizer="discriminator",
                learning_rate_scale=0.5,
            ),
        ]

    def training_step(self, network: nn.Module, batch: dict[str, Tensor], step: int) -> StepOutput:
        fake, score, apart = network(batch["x"], batch["y"])
        main = (fake - batch["y"]).square().mean() - score.mean()
        if step < self.begin:
            return StepOutput({"main": main})
        return StepOutput({"main": main, "discriminator": (1 - apart).square().mean()})

    def after_step(self, step: int) -> None:
        pass

    def evaluate(self) -> dict[str, float]:
        return {}


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


def plain_config(**changes: Any) -> TrainingConfig:
    """Ten steps of nothing but AdamW at a constant rate."""
    settings: dict[str, Any] = {
        "steps": 10,
        "gradient_clip": None,
        "schedule": ScheduleConfig(kind="constant"),
    }
    return TrainingConfig(**{**settings, **changes})


def run_toy(
    path: Path,
    config: TrainingConfig | None = None,
    task: Task | None = None,
    loader: ToyLoader | None = None,
) -> TrainingResult:
    """Train the toy task in `path`, or go on there."""
    return train(
        task or ToyTask(), loader or ToyLoader(), config or toy_config(), RunDirectory(path), stage="toy"
    )
