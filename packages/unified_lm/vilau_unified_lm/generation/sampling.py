"""From logits to one token: temperature, top-k, top-p, and a uniform number per draw.

Every draw takes its own uniform number in [0, 1) through the inverse of the cumulative distribution. The numbers
come from a generator per sample, so a sample's seed fixes it, whatever the batch around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vilau_common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature: 0 takes the most likely token; top_k: keep that many (None: all); top_p: keep the smallest set
    whose share reaches it; guidance: classifier-free guidance scale, 1 is none; depth_temperatures: of a visual
    position's D codes, in the place of `temperature`. Defaults: VILA-U's."""

    temperature: float = 1.0
    top_k: int | None = 900
    top_p: float = 0.96
    guidance: float = 3.0
    depth_temperatures: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for temperature in (self.temperature, *(self.depth_temperatures or ())):
            if not 0 <= temperature < math.inf:
                raise UserError(f"temperature is {temperature}; it must be 0 (most likely token) or above")
        if self.depth_temperatures is not None:
            object.__setattr__(self, "depth_temperatures", tuple(self.depth_temperatures))
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k is {self.top_k}; keep at least 1 token, or leave it out to keep all")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p is {self.top_p}; it must lie above 0 and at most at 1")
        if not 0 <= self.guidance < math.inf:
            raise UserError(f"guidance is {self.guidance}; it must be 0 or above (1 is none)")

    def by_depth(self, depth: int) -> list[Sampling]:
        """The settings of each of a position's `depth` codes. Raises UserError for another number of temperatures."""
        temperatures = self.depth_temperatures
        if temperatures is None:
            return [self] * depth
        if len(temperatures) != depth:
            raise UserError(
                f"there are {len(temperatures)} depth temperatures, but a visual position has {depth} codes; "
                "give one for each"
            )
        return [replace(self, temperature=value, depth_temperatures=None) for value in temperatures]


def sample(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """logits float [N, K], uniform float [N] in [0, 1) -> int64 [N]."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float()
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        ordered, order = logits.topk(sampling.top_k, dim=-1)  # a codebook of 16,384 takes long to sort
    else:
        ordered, order = logits.sort(dim=-1, descending=True)
    # Counted from the largest, the quotient overflows to nothing worse than -inf, however low the temperature.
    share = ((ordered - ordered[:, :1]) / sampling.temperature).softmax(dim=-1)
    before = share.cumsum(dim=-1) - share
    share = share.masked_fill(before >= sampling.top_p, 0.0)
    cumulative = share.cumsum(dim=-1)
    # Scaling the draw instead of the distribution; the last kept token catches what rounding leaves over.
    draw = (uniform.unsqueeze(-1) * cumulative[:, -1:]).to(cumulative.dtype)
    place = torch.searchsorted(cumulative, draw, right=True).clamp(max=share.shape[-1] - 1)
    last_kept = (share > 0).sum(dim=-1, keepdim=True) - 1
    return order.gather(-1, torch.minimum(place, last_kept)).squeeze(-1)


def guided(logits: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: rows [conditional; unconditional] float [2N, K] -> float [N, K]."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def uniform_draws(seeds: Sequence[int], count: int, device: torch.device) -> Tensor:
    """float [len(seeds), count] in [0, 1): row i from a generator of its own, seeded with seeds[i]."""
    rows = [torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)


def text_seed(seed: int) -> int:
    """The seed of a sample's text: its numbers must have nothing to do with those of the same sample's pictures."""
    return int(np.random.SeedSequence((abs(seed), int(seed < 0), 1)).generate_state(1, np.uint64)[0] >> 1)
