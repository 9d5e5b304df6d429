"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vilau_common.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from vilau_common.training.muon import Muon
from vilau_common.training.sharding import divided_like, whole
from vilau_common.training.task import ParameterGroup


class LossOptimizer:
    """What follows one loss: AdamW, and Muon for the matrices where the configuration asks for it."""

    def __init__(self, groups: Sequence[ParameterGroup], config: OptimizerConfig) -> None:
        self.parameters: list[nn.Parameter] = [weight for group in groups for weight in group.parameters]
        self._optimizers: list[torch.optim.Optimizer] = []
        for_muon = [group for group in groups if group.matrices and config.name == "muon"]
        for_adamw = [group for group in groups if group not in for_muon]
        if for_adamw:
            self._optimizers.append(
                torch.optim.AdamW(
                    [_settings(group, config) for group in for_adamw],
                    lr=config.learning_rate,
                    betas=config.betas,
                    eps=config.eps,
                    weight_decay=config.weight_decay,
                    fused=True,
                )
            )
        if for_muon:
            self._optimizers.append(
                Muon(
                    [_settings(group, config) for group in for_muon],
                    lr=config.learning_rate,
                    momentum=config.muon_momentum,
                    weight_decay=config.weight_decay,
                    iterations=config.muon_iterations,
                )
            )

    def clip(self, largest: float | None) -> Tensor:
        """Scale the gradient down to the norm `largest` (None: leave it); return the norm before, float []."""
        gradients = [weight.grad for weight in self.parameters if weight.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if largest is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, largest, norm)
        return norm

    def step(self, rate: float) -> None:
        """Update the parameters at `rate` times their peak learning rate."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * rate
            optimizer.step()

    def drop_gradients(self) -> None:
        """Forget the gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        """The optimisers' state, for a checkpoint."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load(self, state: Sequence[dict[str, Any]]) -> None:
        """Read back what `state` returned, with whole tensors."""
        for optimizer, saved in zip(self._optimizers, state, strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            moments = {index: _divided_like(entry, weights[index]) for index, entry in saved["state"].items()}
            optimizer.load_state_dict({**saved, "state": moments})


def build_optimizers(groups: Sequence[ParameterGroup], config: TrainingConfig) -> dict[str, LossOptimizer]:
    """One optimiser for each name that the groups mention."""
    names = list(dict.fromkeys(group.optimizer for group in groups))
    return {
        name: LossOptimizer(
            [group for group in groups if group.optimizer == name], config.optimizer_named(name)
        )
        for name in names
    }


def _divided_like(entry: dict[str, Any], weight: nn.Parameter) -> dict[str, Any]:
    """A weight's saved state: its moments divided as the weight is, and its count of steps."""
    return {
        name: divided_like(value, weight) if value.shape == weight.shape else value
        for name, value in entry.items()
    }


def _settings(group: ParameterGroup, config: OptimizerConfig) -> dict[str, Any]:
    peak = config.learning_rate * group.learning_rate_scale
    decay = config.weight_decay if group.weight_decay is None else group.weight_decay
    return {
        "params": group.parameters,
        "lr": peak,
        "peak_lr": peak,
        "weight_decay": decay,
        "name": group.name,
    }


def learning_rate_ratio(step: int, steps: int, config: ScheduleConfig) -> float:
    """The share of the peak learning rate that the step after `step` finished ones (of `steps`) takes.

    Warm-up: (step + 1) / warmup_steps. After it, from 1 to final_ratio over the remaining steps, which is
    reached when step = steps.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return 1.0
    begin = config.warmup_steps
    if config.kind == "warmup_stable_decay":
        begin = max(begin, steps - round(config.decay_fraction * steps))
    progress = max(0.0, (step - begin) / max(1, steps - begin))
    share = 0.5 * (1 + math.cos(math.pi * progress)) if config.kind == "cosine" else 1 - progress
    return config.final_ratio + (1 - config.final_ratio) * share
