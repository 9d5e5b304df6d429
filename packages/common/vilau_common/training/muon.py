"""Muon (Keller Jordan, 2024): momentum, made orthogonal by Newton-Schulz, for the matrices of hidden layers.

torch.optim.Muon does the same one matrix at a time and always in bfloat16. On a CPU without bfloat16
arithmetic that took 1.8 s a step for 24 matrices of width 192, and 25 ms on one with it. Here matrices of one
shape go through one batched product, in bfloat16 only where the hardware has it: 50 ms and 12 ms.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

# The quintic whose slope at zero is largest (https://kellerjordan.github.io/posts/muon/).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# An orthogonal update has an RMS of 1 / sqrt(larger side), AdamW's is near 0.2 (Liu et al. 2025, section 2).
ADAMW_RMS = 0.2
NORM_FLOOR = 1e-7
CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")


class Muon(torch.optim.Optimizer):
    """Muon whose updates have AdamW's size, so that AdamW's learning rate and weight decay serve.

    params: groups of 2-D parameters.
    dtype: of the Newton-Schulz iteration; None: bfloat16 where the device computes in it, else float32.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        iterations: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "iterations": iterations}
        )
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "closures are for line searches"
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            momenta = [self._momentum(weight) for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's look ahead
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            for shape, indices in _by_shape(weights).items():
                dtype = self._dtype or _iteration_dtype(weights[indices[0]].device)
                stack = torch.stack([updates[index] for index in indices])
                directions = orthogonal(stack.to(dtype), group["iterations"])
                rate = group["lr"] * ADAMW_RMS * math.sqrt(max(shape))
                for index, direction in zip(indices, directions, strict=True):
                    weights[index].add_(direction, alpha=-rate)

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"]
        return momentum


def orthogonal(matrices: Tensor, iterations: int) -> Tensor:
    """Near-orthogonal matrices of the same row and column spaces: singular values come to about 0.7 to 1.2.

    matrices: float [N, rows, columns]; returns the same shape and dtype.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # the Gram matrix of the smaller side is the cheaper one
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=NORM_FLOOR)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _by_shape(weights: list[Tensor]) -> dict[torch.Size, list[int]]:
    indices: dict[torch.Size, list[int]] = defaultdict(list)
    for index, weight in enumerate(weights):
        indices[weight.shape].append(index)
    return indices


@cache
def _iteration_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        # Without these instructions bfloat16 products are emulated, 100 times slower than float32's.
        able = torch.cpu.get_capabilities()
        return torch.bfloat16 if any(able.get(name) for name in CPU_BFLOAT16) else torch.float32
    return torch.bfloat16
