"""An exponential moving average of the trained weights, kept in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vilau_common.training.sharding import divided_like, local


class WeightAverage:
    """average <- d * average + (1 - d) * weight, after each step, with d = min(decay, (1 + n) / (10 + n)).

    n counts the updates. The ramp of d, TensorFlow's, keeps the random first weights from weighing on short
    runs. Buffers are not averaged. Of weights that FSDP divides, every process averages its part.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._weights = list(parameters.values())
        self._averages = {
            name: weight.detach().to(torch.float32, copy=True) for name, weight in parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [local(weight).to(torch.float32) for weight in self._weights]
        torch._foreach_lerp_([local(average) for average in self._averages.values()], weights, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the averaged weights inside the block, its own ones again after it."""
        own = [local(weight.detach()).clone() for weight in self._weights]
        self._fill([local(average) for average in self._averages.values()])
        try:
            yield
        finally:
            self._fill(own)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name, float32."""
        return self._averages

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Read back `state`, whole tensors, and the number of updates it had seen."""
        if state.keys() != self._averages.keys():
            raise ValueError("the averaged weights in the checkpoint are of other parameters")
        for name, average in self._averages.items():
            local(average).copy_(local(divided_like(state[name], average)))
        self.updates = updates

    @torch.no_grad()
    def _fill(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            local(weight).copy_(value)
