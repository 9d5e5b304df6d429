"""From logits to one token: temperature, top-k, top-p, and a uniform number per draw.

Every draw takes its own uniform number in [0, 1) through the inverse of the cumulative distribution. The numbers
come from a generator per sample, so a sample's seed fixes it, whatever the batch around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vilau_common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature: 0 takes the most likely token; top_k: keep that many (None: all); top_p: keep the smallest set
    whose share reaches it; guidance: classifier-free guidance scale, 1 is none. Defaults: VILA-U's."""

    temperature: float = 1.0
    top_k: int | None = 900
    top_p: float = 0.96
    guidance: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; it must be 0 (most likely token) or above")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k is {self.top_k}; keep at least 1 token, or leave it out to keep all")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p is {self.top_p}; it must lie above 0 and at most at 1")
        if not 0 <= self.guidance < math.inf:
            raise UserError(f"guidance is {self.guidance}; it must be 0 or above (1 is none)")


def sample(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """logits float [N, K], uniform float [N] in [0, 1) -> int64 [N]."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    ordered, order = logits.float().sort(dim=-1, descending=True)
    if sampling.top_k is not None:
        ordered, order = ordered[:, : sampling.top_k], order[:, : sampling.top_k]
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
