"""Schedules against hand-made values; our Muon against torch's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vilau_common.training import OptimizerConfig, ParameterGroup, ScheduleConfig
from vilau_common.training.muon import Muon, orthogonal
from vilau_common.training.optim import LossOptimizer, learning_rate_ratio

STEPS = 100


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ScheduleConfig(kind="constant"), {0: 1, 50: 1, 99: 1}),
        (ScheduleConfig(kind="constant", warmup_steps=10), {0: 0.1, 4: 0.5, 9: 1, 10: 1, 99: 1}),
        (ScheduleConfig(kind="linear"), {0: 1, 50: 0.5, 99: 0.01}),
        (ScheduleConfig(kind="linear", warmup_steps=20, final_ratio=0.5), {19: 1, 20: 1, 60: 0.75, 100: 0.5}),
        (ScheduleConfig(kind="cosine"), {0: 1, 25: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 100: 0}),
        (
            ScheduleConfig(kind="cosine", warmup_steps=50, final_ratio=0.1),
            {24: 0.5, 50: 1, 75: 0.55, 100: 0.1},
        ),
        (
            ScheduleConfig(kind="warmup_stable_decay", warmup_steps=10, decay_fraction=0.4),
            {4: 0.5, 10: 1, 59: 1, 60: 1, 80: 0.5, 100: 0},
        ),
        (ScheduleConfig(kind="cosine", warmup_steps=100), {0: 0.01, 99: 1}),
    ],
)
def test_schedule(config: ScheduleConfig, expected: dict[int, float]) -> None:
    for step, ratio in expected.items():
        assert learning_rate_ratio(step, STEPS, config) == pytest.approx(ratio), step


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_muon_is_torchs(shape: tuple[int, int]) -> None:
    """The same weights after some steps with decay, up to bfloat16's rounding (an update is about 2e-3)."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for _ in range(3)]
    gradients = [[torch.randn(shape) for _ in start] for _ in range(4)]
    results = []
    for make in (torch_muon, our_muon):
        weights = [nn.Parameter(value.clone()) for value in start]
        optimizer = make(weights)
        for step in gradients:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        results.append(torch.stack([weight.detach() for weight in weights]))
    moved = (results[0] - torch.stack(start)).abs().mean()
    assert (results[0] - results[1]).abs().max() < 0.05 * moved


def torch_muon(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Muon(weights, lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")


def our_muon(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    groups = [{"params": weights}]
    return Muon(groups, lr=0.01, weight_decay=0.1, momentum=0.9, iterations=5, dtype=torch.bfloat16)


@pytest.mark.parametrize("shape", [(2, 32, 32), (3, 64, 16), (1, 16, 64)])
def test_orthogonal(shape: tuple[int, int, int]) -> None:
    """Every singular value comes near 1, and the singular vectors stay."""
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonal(matrices, iterations=5)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.3
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    core = left.mT @ result @ right.mT
    assert (core - torch.diag_embed(core.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3


def test_muons_steps_are_of_adamws_size() -> None:
    """One learning rate serves both: the RMS of an update is about 0.2 of it, for every shape."""
    torch.manual_seed(0)
    for shape in [(64, 64), (192, 48), (48, 192)]:
        weight = nn.Parameter(torch.zeros(shape))
        group = ParameterGroup(name="matrices", parameters=[weight], matrices=True)
        optimizer = LossOptimizer([group], OptimizerConfig(name="muon", learning_rate=1.0))
        weight.grad = torch.randn(shape)
        optimizer.step(1.0)
        assert weight.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


def test_only_marked_groups_go_to_muon() -> None:
    """An embedding is 2-D as well, and AdamW's: its first step is the sign of the gradient."""
    embedding, hidden = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 4))
    groups = [
        ParameterGroup(name="embedding", parameters=[embedding]),
        ParameterGroup(name="hidden", parameters=[hidden], matrices=True, learning_rate_scale=0.5),
    ]
    optimizer = LossOptimizer(groups, OptimizerConfig(name="muon", learning_rate=0.1))
    gradient = torch.tensor([[1.0, 2, 3, 4]] * 4) + torch.eye(4)
    embedding.grad, hidden.grad = gradient.clone(), gradient.clone()
    optimizer.step(1.0)
    torch.testing.assert_close(embedding.detach(), torch.full((4, 4), -0.1))
    assert hidden.abs().std() > 0.001
    optimizer.drop_gradients()
    assert embedding.grad is None
    assert hidden.grad is None


def test_a_group_may_have_its_own_weight_decay() -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [
        ParameterGroup(name="decayed", parameters=[weights[0]]),
        ParameterGroup(name="free", parameters=[weights[1]], weight_decay=0.0),
    ]
    optimizer = LossOptimizer(groups, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    for weight in weights:
        weight.grad = torch.zeros(2)
    optimizer.step(0.5)
    assert weights[0].tolist() == pytest.approx([1 - 0.1 * 0.5 * 0.5] * 2)
    assert weights[1].tolist() == [1.0, 1.0]
