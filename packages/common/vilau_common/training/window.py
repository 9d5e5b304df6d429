"""The numbers since the last log line, and the watch over them."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vilau_common import distributed
from vilau_common.training.task import MAIN, StepOutput


class MetricsWindow:
    """Collects scalars without reading them (a read would make the CPU wait for a GPU).

    Its state goes into checkpoints: a log line after a resumption averages over the steps before it too.
    """

    def __init__(self) -> None:
        self.shown_loss: float | None = None  # the last main loss that was read
        self._values: dict[str, list[Tensor | float]] = defaultdict(list)
        self._unchecked: list[tuple[int, str, Tensor]] = []  # step, losses and norms that were not read yet
        self._start_clock()

    def add(self, step: int, output: StepOutput) -> None:
        """Take in what one batch of a step gave; `step` counts from 1."""
        for name, loss in output.losses.items():
            self._values[f"loss/{name}"].append(loss.detach())
            self._unchecked.append((step, f"loss/{name}", loss.detach()))
        for name, value in output.metrics.items():
            self._values[f"train/{name}"].append(value.detach() if isinstance(value, Tensor) else value)

    def add_norm(self, step: int, optimizer: str, norm: Tensor) -> None:
        """Take in the norm of one optimiser's gradient."""
        name = "gradient_norm" if optimizer == MAIN else f"gradient_norm/{optimizer}"
        self._values[name].append(norm)
        self._unchecked.append((step, name, norm))

    def add_step(self, units: int) -> None:
        """Count a step, and what it took in, for the throughput."""
        self._steps += 1
        self._units += units

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time of the block as waiting for the loader."""
        start = time.perf_counter()
        yield
        self._waiting += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out of the throughput."""
        start = time.perf_counter()
        yield
        self._started += time.perf_counter() - start

    def first_bad(self) -> str | None:
        """The first loss or norm since the last call that is not finite, in words; waits for the GPU."""
        values = torch.stack([value for _, _, value in self._unchecked]).tolist() if self._unchecked else []
        bad = None
        for (step, name, _), value in zip(self._unchecked, values, strict=True):
            if name == f"loss/{MAIN}":
                self.shown_loss = value
            if bad is None and not math.isfinite(value):
                bad = f"{name} became {value} at step {step}"
        self._unchecked.clear()
        return bad

    def take_averages(self) -> dict[str, float]:
        """The means over the window and all processes, and the throughput; begins a new window."""
        averages = _means(distributed.gather(self._read()))
        seconds = time.perf_counter() - self._started
        averages["time/step_seconds"] = seconds / max(1, self._steps)
        averages["time/data_seconds"] = self._waiting / max(1, self._steps)
        averages["time/units_per_second"] = self._units * distributed.world_size() / seconds
        self._values.clear()
        self._start_clock()
        return averages

    def state(self) -> dict[str, list[float]]:
        """The window's numbers, for a checkpoint; the clock is not kept."""
        return self._read()

    def load(self, state: Mapping[str, Any]) -> None:
        """Read back what `state` returned."""
        self._values = defaultdict(list, {name: list(values) for name, values in state.items()})

    def _read(self) -> dict[str, list[float]]:
        return {name: [float(value) for value in values] for name, values in self._values.items()}

    def _start_clock(self) -> None:
        self._started = time.perf_counter()
        self._waiting = 0.0
        self._steps = 0
        self._units = 0


def _means(windows: list[dict[str, list[float]]]) -> dict[str, float]:
    names = dict.fromkeys(name for window in windows for name in window)
    together = {name: [value for window in windows for value in window.get(name, [])] for name in names}
    # fsum does not depend on the order, so neither does the mean on which process saw what.
    return {name: math.fsum(values) / len(values) for name, values in together.items()}
