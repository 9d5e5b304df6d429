"""Everything that a training step reads and changes: the step itself, and its state for a checkpoint."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor

from vilau_common import distributed
from vilau_common.errors import UserError
from vilau_common.run import isolated_random, random_state, seed_everything, set_random_state
from vilau_common.training import sharding
from vilau_common.training.checkpoint import Checkpoint
from vilau_common.training.config import TrainingConfig
from vilau_common.training.ema import WeightAverage
from vilau_common.training.environment import accelerator_for, release, wrap
from vilau_common.training.optim import build_optimizers, learning_rate_ratio
from vilau_common.training.task import MAIN, Loader, StepOutput, Task, check_parameter_groups
from vilau_common.training.window import MetricsWindow


class TrainingDiverged(UserError):
    """A loss, a gradient or a weight is no finite number any more; nothing of it was written to disk."""


class TrainingState:
    """Network, optimisers, averaged weights, data position and random numbers at one step of a run."""

    def __init__(self, task: Task, loader: Loader, config: TrainingConfig, seed: int) -> None:
        self.task, self.loader, self.config = task, loader, config
        self.step = 0  # optimiser steps done
        self.window = MetricsWindow()
        self._accelerator: Accelerator = accelerator_for(config)
        # A single process asks, too, so that a training which cannot be divided is refused at its first try.
        division = task.sharding() if config.parallel == "fsdp2" else None
        self.sharded = division is not None and distributed.world_size() > 1
        self._network = wrap(
            self._accelerator, task.network, division if self.sharded else None, config.mixed_precision
        )
        self._looks_each_step = self._accelerator.device.type == "cpu"
        groups = task.parameter_groups()
        check_parameter_groups(task.network, groups)
        config.check_optimizers({*task.other_optimizers, *(group.optimizer for group in groups)} - {MAIN})
        self._optimizers = build_optimizers(groups, config)
        trained = {name: weight for name, weight in task.network.named_parameters() if weight.requires_grad}
        self.average = WeightAverage(trained, config.ema_decay) if config.ema_decay is not None else None
        self._batches: Iterator[Any] | None = None
        self._seed = seed
        seed_everything(seed, distributed.rank())

    @property
    def data_sources(self) -> Any:
        """The loader's `sources`, as JSON gives them back; None where it does not tell."""
        return json.loads(json.dumps(getattr(self.loader, "sources", None)))

    def close(self) -> None:
        """Take everything that was wrapped around the network off it."""
        release(self._accelerator, self._network)

    def advance(self) -> int:
        """Do one optimiser step; return how many of the task's units it took in on this process."""
        config = self.config
        units = 0
        present: set[str] = set()
        batches = [self._next_batch() for _ in range(config.accumulation)]
        self.task.before_step(batches)
        for index, batch in enumerate(batches):
            batch = send_to_device(batch, self._accelerator.device)
            last = index == config.accumulation - 1
            # Divided gradients are averaged after every batch: until the last one they would have to be kept whole.
            waits = not last and not self.sharded
            with self._accelerator.no_sync(self._network) if waits else contextlib.nullcontext():
                output = self.task.training_step(self._network, batch, self.step)
                self._backward(output, last)
            present.update(output.losses)
            self.window.add(self.step + 1, output)
            units += self.task.batch_size(batch)
        optimizers = {name: optimizer for name, optimizer in self._optimizers.items() if name in present}
        for name, optimizer in optimizers.items():
            self.window.add_norm(self.step + 1, name, optimizer.clip(config.gradient_clip))
        # On a CPU looking costs nothing; on a GPU it waits, so that is left to the steps that are logged.
        if self._looks_each_step or config.due(config.log_every, self.step + 1):
            self._stop_if_diverged()
        rate = learning_rate_ratio(self.step, config.steps, config.schedule)
        for optimizer in optimizers.values():
            optimizer.step(rate)
        for optimizer in self._optimizers.values():
            optimizer.drop_gradients()
        self.step += 1
        self.task.after_step(self.step)
        if self.average is not None:
            self.average.update()
        self.window.add_step(units)
        return units

    def _next_batch(self) -> Any:
        with self.window.waiting_for_data():
            try:
                if self._batches is None:
                    # Only now: the loader may have been sent to a saved position. Starting workers takes a seed
                    # from the global generator, which a resumed run would take from another place in it.
                    with isolated_random(self._seed, distributed.rank()):
                        self._batches = iter(self.loader)
                        batch = next(self._batches)
                else:
                    batch = next(self._batches)
            except StopIteration:
                raise RuntimeError("the loader ended: training needs an endless one") from None
            return batch

    def _backward(self, output: StepOutput, last: bool) -> None:
        """Give each loss's gradient to its own optimiser's parameters, and to no other's."""
        losses = dict(output.losses)
        if unknown := losses.keys() - self._optimizers.keys():
            raise ValueError(f"no parameter group names the optimiser of the loss {unknown.pop()!r}")
        if (last or self.sharded) and distributed.world_size() > 1:
            self._touch_all(losses)
            # Losses of nothing first: whatever goes backward before the last one keeps its activations till the end.
            losses = dict(sorted(losses.items(), key=lambda item: item[0] in output.losses))
        several = len(self._optimizers) > 1
        for index, (name, loss) in enumerate(losses.items()):
            # Losses may share parts of the graph: keep it until the last one has gone through.
            self._accelerator.backward(
                loss,
                inputs=self._optimizers[name].parameters if several else None,
                retain_graph=index < len(losses) - 1,
            )

    def _touch_all(self, losses: dict[str, Tensor]) -> None:
        """Processes average their gradients when every parameter has one: give zero to those that would not."""
        for name, optimizer in self._optimizers.items():
            if name not in losses or self.task.may_skip_parameters:
                weights = sharding.gathered_now(self._network) if self.sharded else optimizer.parameters
                nothing = 0.0 * torch.stack([weight.sum() for weight in weights]).sum()
                losses[name] = losses[name] + nothing if name in losses else nothing

    def _stop_if_diverged(self) -> None:
        """Raise TrainingDiverged, on every process, if a loss or norm not yet looked at is not finite."""
        bad = self.window.first_bad()
        if distributed.maximum(bad is not None):
            told = [words for words in distributed.gather(bad) if words is not None]
            # Averaging has spread the gradient to every process: the loss tells where it began.
            raise TrainingDiverged(min(told, key=lambda words: not words.startswith("loss/")))

    def capture(self, trainer: Mapping[str, Any]) -> Checkpoint:
        """The whole state, and `trainer` beside it; called on every process.

        TrainingDiverged: it is not fit to be kept.
        """
        self._stop_if_diverged()
        finite = [
            torch.isfinite(sharding.local(weight)).all()
            for optimizer in self._optimizers.values()
            for weight in optimizer.parameters
        ]
        if distributed.maximum(not bool(torch.stack(finite).all())):
            raise TrainingDiverged(f"a weight became infinite or no number at step {self.step}")
        weights = self.task.trained_state()
        distributed.check_same(
            {name: value for name, value in weights.items() if sharding.local(value) is value}
        )
        return Checkpoint(
            trainer={
                **trainer,
                "step": self.step,
                "processes": distributed.world_size(),
                "accumulation": self.config.accumulation,
                "config": self.config.digest(),
                "data_sources": self.data_sources,
                "average_updates": self.average.updates if self.average is not None else 0,
            },
            weights=sharding.gathered(weights),
            average=sharding.gathered(self.average.state()) if self.average is not None else None,
            optimizers={
                name: sharding.gathered(optimizer.state()) for name, optimizer in self._optimizers.items()
            },
            process={
                "loader": dict(self.loader.state_dict()),
                "window": self.window.state(),
                "random": random_state(),
            },
        )

    def restore(self, saved: Checkpoint) -> None:
        """Go to a captured state; without one of this process's own, with fresh random numbers and data."""
        self.step = saved.trainer["step"]
        present = self.task.trained_state()
        self.task.load_trained_state(
            {
                name: sharding.divided_like(value, present.get(name, value))
                for name, value in saved.weights.items()
            }
        )
        for name, optimizer in self._optimizers.items():
            optimizer.load(saved.optimizers[name])
        if self.average is not None:
            assert saved.average is not None, "the settings' digest is the same"
            self.average.load(saved.average, saved.trainer["average_updates"])
        if saved.process is None:
            seed_everything(self._seed + self.step, distributed.rank())
            return
        self.loader.load_state_dict(saved.process["loader"])
        self.window.load(saved.process["window"])
        set_random_state(saved.process["random"])

    def reshard(self) -> None:
        """After forward passes without a backward pass; see `sharding.reshard`."""
        if self.sharded:
            sharding.reshard(self.task.network)

    def whole_weights(self) -> AbstractContextManager[None]:
        """Inside the block rank 0's network can be saved; called on every process."""
        return sharding.whole_weights(self.task.network) if self.sharded else contextlib.nullcontext()
