"""Everything that a training step reads and changes: the step itself, and its state for a checkpoint."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from vilau_common import distributed
from vilau_common.errors import UserError
from vilau_common.run import random_state, seed_everything, set_random_state
from vilau_common.training.checkpoint import Checkpoint
from vilau_common.training.config import TrainingConfig
from vilau_common.training.ema import WeightAverage
from vilau_common.training.environment import accelerator_for, release
from vilau_common.training.optim import build_optimizers, learning_rate_ratio
from vilau_common.training.task import Loader, StepOutput, Task, check_parameter_groups
from vilau_common.training.window import MetricsWindow


class TrainingDiverged(UserError):
    """A loss, a gradient or a weight is no finite number any more; nothing of it was written to disk."""


class TrainingState:
    """Network, optimisers, averaged weights, data position and random numbers at one step of a run."""

    def __init__(self, task: Task, loader: Loader, config: TrainingConfig, seed: int) -> None:
        self.task, self.loader, self.config = task, loader, config
        self.step = 0  # optimiser steps done
        self.window = MetricsWindow()
        self._accelerator: Accelerator = accelerator_for(config, task)
        self._network = self._accelerator.prepare_model(task.network)
        groups = task.parameter_groups()
        check_parameter_groups(task.network, groups)
        self._optimizers = build_optimizers(groups, config)
        trained = {name: weight for name, weight in task.network.named_parameters() if weight.requires_grad}
        self.average = WeightAverage(trained, config.ema_decay) if config.ema_decay is not None else None
        self._batches: Iterator[Any] | None = None
        seed_everything(seed, distributed.rank())

    def close(self) -> None:
        """Take everything that was wrapped around the network off it."""
        release(self._accelerator, self._network)

    def advance(self) -> int:
        """Do one optimiser step; return how many of the task's units it took in on this process."""
        config = self.config
        units = 0
        for index in range(config.accumulation):
            batch = self._next_batch()
            last = index == config.accumulation - 1
            with contextlib.nullcontext() if last else self._accelerator.no_sync(self._network):
                output = self.task.training_step(self._network, batch, self.step)
                self._backward(output)
            self.window.add(output)
            units += self.task.batch_size(batch)
        for name, optimizer in self._optimizers.items():
            self.window.add_norm(name, optimizer.clip(config.gradient_clip))
        # On a CPU looking costs nothing; on a GPU it waits, so that is left to the steps that are logged.
        if self._accelerator.device.type == "cpu" or config.due(config.log_every, self.step + 1):
            self._stop_if_diverged()
        rate = learning_rate_ratio(self.step, config.steps, config.schedule)
        for optimizer in self._optimizers.values():
            optimizer.step(rate)
        self.step += 1
        if self.average is not None:
            self.average.update()
        self.task.after_step(self.step)
        self.window.add_step(units)
        return units

    def _next_batch(self) -> Any:
        if self._batches is None:
            self._batches = iter(self.loader)  # not earlier: the loader may be sent to a saved position first
        with self.window.waiting_for_data():
            return send_to_device(next(self._batches), self._accelerator.device)

    def _backward(self, output: StepOutput) -> None:
        """Give each loss's gradient to its own optimiser's parameters, and to no other's."""
        if len(self._optimizers) == 1:
            (loss,) = output.losses.values()
            self._accelerator.backward(loss)
            return
        losses = list(output.losses.items())
        for index, (name, loss) in enumerate(losses):
            # Losses may share parts of the graph: keep it until the last one has gone through.
            self._accelerator.backward(
                loss, inputs=self._optimizers[name].parameters, retain_graph=index < len(losses) - 1
            )

    def _stop_if_diverged(self) -> None:
        """Raise TrainingDiverged, on every process, if a loss or norm not yet looked at is not finite."""
        bad = self.window.first_bad()
        if distributed.maximum(bad is not None):
            name, value = bad if bad is not None else ("a loss on another process", math.nan)
            raise TrainingDiverged(f"{name} became {value}")

    def capture(self, trainer: Mapping[str, Any]) -> Checkpoint:
        """The whole state, and `trainer` beside it; called on every process.

        TrainingDiverged: it is not fit to be kept.
        """
        self._stop_if_diverged()
        finite = [
            torch.isfinite(weight).all()
            for optimizer in self._optimizers.values()
            for weight in optimizer.parameters
        ]
        if not bool(torch.stack(finite).all()):
            raise TrainingDiverged("a weight became infinite or no number")
        weights = self.task.trained_state()
        distributed.check_same(weights)
        return Checkpoint(
            trainer={
                **trainer,
                "step": self.step,
                "processes": distributed.world_size(),
                "config": self.config.digest(),
                "average_updates": self.average.updates if self.average is not None else 0,
            },
            weights=weights,
            average=self.average.state() if self.average is not None else None,
            optimizers={name: optimizer.state() for name, optimizer in self._optimizers.items()},
            process={
                "random": random_state(),
                "loader": dict(self.loader.state_dict()),
                "window": self.window.state(),
            },
        )

    def restore(self, saved: Checkpoint) -> None:
        """Go to a captured state."""
        self.step = saved.trainer["step"]
        self.task.load_trained_state(saved.weights)
        for name, optimizer in self._optimizers.items():
            optimizer.load(saved.optimizers[name])
        if self.average is not None:
            assert saved.average is not None, "the settings' digest is the same"
            self.average.load(saved.average, saved.trainer["average_updates"])
        self.loader.load_state_dict(saved.process["loader"])
        self.window.load(saved.process["window"])
        set_random_state(saved.process["random"])
