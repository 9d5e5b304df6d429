"""Gradient checkpointing gives the same gradients from fewer activations; bf16 trains float32 weights."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_lm import D, all_forms, make_model, objective
from tiny_run import EndState, config_for
from torch import Tensor

from vilau_common.training import OptimizerConfig
from vilau_unified_lm.document import DocumentBuilder
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.packing import MixedSequence, pack
from vilau_unified_lm.train import train_lm
from vilau_unified_lm.vocabulary import Vocabulary


@pytest.fixture
def pair(vocabulary: Vocabulary) -> list[UnifiedLM]:
    """The same model twice, the second one with checkpointing; dropout in the depth transformer."""
    plain = make_model(vocabulary, grid_positions=True).train()
    assert plain.depth.config.dropout > 0
    checkpointed = copy.deepcopy(plain)
    checkpointed.activation_checkpointing_enable()
    return [plain, checkpointed]


@pytest.fixture
def batch(builder: DocumentBuilder) -> MixedSequence:
    return pack([[document] for document in all_forms(builder)], 60, D)


def test_the_same_loss_and_gradients(pair: list[UnifiedLM], batch: MixedSequence) -> None:
    losses = []
    for model in pair:
        torch.manual_seed(3)
        loss = objective(model, batch).total
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1]
    others = dict(pair[1].named_parameters())
    for name, weight in pair[0].named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            assert torch.equal(others[name].grad, weight.grad), name


def test_fewer_activations_are_kept_of_backbone_and_depth_transformer(
    pair: list[UnifiedLM], batch: MixedSequence
) -> None:
    kept: list[dict[str, int]] = []
    for model in pair:
        seen: list[int] = []

        def count(tensor: Tensor, seen: list[int] = seen) -> Tensor:
            seen.append(tensor.numel())
            return tensor

        amounts = {}
        inputs = torch.randn(2, 20, 32, requires_grad=True)
        mask = torch.ones(2, 1, 20, 20, dtype=torch.bool).tril()
        positions = torch.arange(20).expand(2, 20)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.backbone(inputs, mask, positions)
            amounts["backbone"] = sum(seen)
            seen.clear()
            model.depth(torch.randn(30, 32), torch.randn(30, D, 8))
            amounts["depth"] = sum(seen)
        kept.append(amounts)
    for name in ("backbone", "depth"):
        assert kept[1][name] < 0.5 * kept[0][name], name


def test_train_lm_takes_either(ready: Path, tmp_path: Path) -> None:
    """A run may even go on the other way."""
    weights = []
    for checkpointing in (False, True):
        run = tmp_path / str(checkpointing)
        config = config_for(ready, run)
        config.lm.gradient_checkpointing = checkpointing
        train_lm(config)
        weights.append(EndState.of(run).weights)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_one_step_in_bf16(ready: Path, tmp_path: Path) -> None:
    """The loss is float32's but for rounding, the weights stay float32 and move as float32's do."""
    weights, losses = {}, {}
    for precision in ("no", "bf16"):
        run = tmp_path / precision
        optimizer = OptimizerConfig(learning_rate=1e-3)
        train_lm(
            config_for(
                ready,
                run,
                steps=1,
                accumulation=1,
                ema_decay=None,
                mixed_precision=precision,
                optimizer=optimizer,
            )
        )
        weights[precision] = load_file(run / "model" / "model.safetensors")
        losses[precision] = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["loss/main"]
    assert math.isfinite(losses["bf16"])
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02)
    assert losses["bf16"] != losses["no"]
    floats = [value for value in weights["bf16"].values() if value.is_floating_point()]
    assert {value.dtype for value in floats} == {torch.float32}
    name = "llm.model.layers.0.mlp.up_proj.weight"
    difference = (weights["bf16"][name] - weights["no"][name]).abs()
    assert 0 < difference.max() <= 2.1e-3  # one step of Adam, either way
    assert difference.mean() < 2e-4
