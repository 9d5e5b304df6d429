"""Stages: what trains and what does not, at which rate, and that each goes on from the weights of the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_backbones import save_backbone
from tiny_lm import assert_same_state, make_model, make_tower, state_of
from tiny_run import config_for

from vilau_common.config import load_config
from vilau_common.errors import UserError
from vilau_common.training import OptimizerConfig
from vilau_unified_lm.backbone import PretrainedBackboneConfig
from vilau_unified_lm.lora import LoraConfig
from vilau_unified_lm.model import load_unified_lm
from vilau_unified_lm.stage import PartRates, StageConfig, freeze
from vilau_unified_lm.task import UnifiedTask
from vilau_unified_lm.train import SCHEMA_GROUPS, TrainLmConfig, train_lm
from vilau_unified_lm.vocabulary import Vocabulary

CONF = Path(__file__).parents[2] / "conf"
PREFIX = {"backbone": "llm.", "projector": "projector.", "depth": "depth."}


def stage_of(name: str) -> TrainLmConfig:
    """What `stage=<name>` composes to."""
    overrides = ["experiment=smoke/lm", f"stage={name}"]
    return load_config("train_lm", overrides, TrainLmConfig, groups=SCHEMA_GROUPS, directory=CONF)


def stage_run(ready: Path, run: Path, name: str, start: Path | None = None) -> TrainLmConfig:
    """A tiny run of a stage as conf/stage/ has it."""
    config, stage = config_for(ready, run, steps=2, ema_decay=None), stage_of(name)
    rate = stage.training.optimizer.learning_rate
    return replace(
        config,
        stage=stage.stage,
        data=replace(config.data, mixture=stage.data.mixture),
        lm=replace(config.lm, start=None if start is None else str(start)),
        training=replace(config.training, optimizer=OptimizerConfig(learning_rate=rate)),
    )


@pytest.mark.parametrize(
    ("name", "trained", "rate"),
    [
        ("align", {"projector", "depth"}, 1e-3),
        ("pretrain", {"backbone", "projector", "depth"}, 5e-5),
        ("sft", {"backbone", "projector", "depth"}, 1e-4),
    ],
)
def test_a_stage_says_what_trains_how_fast_and_on_what(name: str, trained: set[str], rate: float) -> None:
    config = stage_of(name)
    assert config.stage.name == name
    assert {part for part, share in vars(config.stage.rates).items() if share} == trained
    assert config.training.optimizer.learning_rate == rate
    assert sum(vars(config.data.mixture).values()) == pytest.approx(1)
    assert (
        config.data.mixture
        != load_config(
            "train_lm", ["experiment=smoke/lm"], TrainLmConfig, groups=SCHEMA_GROUPS, directory=CONF
        ).data.mixture
    )


def changed(before: Path, after: Path) -> dict[str, tuple[int, int]]:
    """Part -> (how many of its weights differ between two saved models, how many there are)."""
    left, right = (load_unified_lm(run) for run in (before, after))
    assert_same_state(state_of(left.vision_tower), state_of(right.vision_tower))
    others = dict(right.named_parameters())
    counts = {}
    for part, prefix in PREFIX.items():
        weights = {name: weight for name, weight in left.named_parameters() if name.startswith(prefix)}
        moved = sum(not torch.equal(weight, others[name]) for name, weight in weights.items())
        counts[part] = (moved, len(weights))
    return counts


@pytest.fixture(scope="module")
def first(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run to start from."""
    run = tmp_path_factory.mktemp("first") / "lm"
    train_lm(config_for(ready, run, steps=1))
    return run


def test_align_moves_what_is_new_and_pretraining_goes_on_from_it(
    ready: Path,
    first: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By gradient, by weights after the steps, by what the next stage begins with."""
    gradients: list[set[str]] = []
    beginnings: list[dict[str, torch.Tensor]] = []
    tasks: list[UnifiedTask] = []
    step = UnifiedTask.training_step

    def watched(task: UnifiedTask, network: Any, batch: Any, number: int) -> Any:
        if task not in tasks:
            tasks.append(task)
            beginnings.append(state_of(task.model))
            gradients.append(set())
        output = step(task, network, batch, number)
        weights = dict(task.model.named_parameters())
        trained = [weight for weight in weights.values() if weight.requires_grad]
        found = torch.autograd.grad(output.losses["main"], trained, retain_graph=True, allow_unused=True)
        has = {id(weight) for weight, gradient in zip(trained, found, strict=True) if gradient is not None}
        gradients[-1] |= {name.split(".")[0] for name, weight in weights.items() if id(weight) in has}
        return output

    monkeypatch.setattr(UnifiedTask, "training_step", watched)
    align, pretrain = tmp_path / "align", tmp_path / "pretrain"
    train_lm(stage_run(ready, align, "align", first))
    assert gradients == [{"projector", "depth"}]
    counts = changed(first, align)
    assert counts["backbone"][0] == 0
    assert counts["projector"][0] == counts["projector"][1] > 0
    assert counts["depth"][0] == counts["depth"][1] > 0
    saved = torch.load(align / "checkpoints" / "step_000002" / "optimizer.pt", weights_only=True)
    assert {group["name"].split("/")[0] for group in saved["main"][0]["param_groups"]} == {
        "projector",
        "depth",
    }

    train_lm(stage_run(ready, pretrain, "pretrain", align))
    assert gradients[1] == {"llm", "projector", "depth"}
    assert_same_state(beginnings[1], state_of(load_unified_lm(align)))
    counts = changed(align, pretrain)
    assert all(moved == there > 0 for moved, there in counts.values())


def test_parts_learn_at_rates_of_their_own(vocabulary: Vocabulary, tokenizer: Any) -> None:
    model = make_model(vocabulary)
    rates = PartRates(backbone=0.25, projector=2.0, depth=0.0)
    freeze(model, rates)
    groups = UnifiedTask(model, tokenizer, rates=rates).parameter_groups()
    names = {id(weight): name for name, weight in model.named_parameters()}
    seen: dict[str, set[float]] = {}
    for group in groups:
        for weight in group.parameters:
            seen.setdefault(names[id(weight)].split(".")[0], set()).add(group.learning_rate_scale)
    assert seen == {"llm": {0.25}, "projector": {2.0}}


def test_a_checkpoint_leaves_frozen_parts_out_and_a_resumed_align_is_the_same(
    ready: Path,
    first: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "align"
    config = stage_run(ready, run, "align", first)
    train_lm(config)
    checkpoint = load_file(run / "checkpoints" / "step_000002" / "weights.safetensors")
    assert {name.split(".")[0] for name in checkpoint} == {"projector", "depth"}
    expected = state_of(load_unified_lm(run))
    # As after a crash while the model was being written.
    (run / "finished.json").unlink()
    for file in (run / "model").iterdir():
        file.unlink()
    (run / "model").rmdir()
    assert train_lm(config).step == 2
    assert_same_state(state_of(load_unified_lm(run)), expected)


def refused(change: Callable[[TrainLmConfig], TrainLmConfig], config: TrainLmConfig, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train_lm(change(config))
    assert not Path(config.directory).exists()


def test_a_start_of_another_tower_tokenizer_or_model_is_refused(
    ready: Path,
    first: Path,
    tmp_path: Path,
) -> None:
    config = stage_run(ready, tmp_path / "run", "pretrain", first)

    def with_lm(**changes: Any) -> Callable[[TrainLmConfig], TrainLmConfig]:
        return lambda config: replace(config, lm=replace(config.lm, **changes))

    refused(
        with_lm(start=str(ready)), config, "lm.start is .*, but no finished run of `vilau train-lm` is there"
    )
    foreign = tmp_path / "foreign"
    (foreign / "model").mkdir(parents=True)
    (foreign / "model" / "config.json").write_text("{}")
    (foreign / "config.yaml").write_text("clip_fingerprint: feedfacedeadbeef\n")
    refused(
        with_lm(start=str(foreign)), config, "foreign, which is a run of another kind than `vilau train-lm`"
    )
    other = tmp_path / "other"
    (other / "model").mkdir(parents=True)
    for file in (first / "model").iterdir():
        (other / "model" / file.name).write_bytes(file.read_bytes())
    record = yaml.safe_load((first / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**record, "tower_fingerprint": "feedfacedeadbeef"}))
    refused(
        with_lm(start=str(other)),
        config,
        "was trained with the tower feedfacedeadbeef, but lm.tower is [0-9a-f]{16}",
    )
    refused(
        with_lm(depth=replace(config.lm.depth, width=48)),
        config,
        "whose model is another one than .* describe: depth.width is 24, not 48",
    )
    refused(
        with_lm(backbone=replace(config.lm.backbone, heads=8)),
        config,
        "describe: text_config.(head_dim|num_attention_heads) is",
    )
    save_backbone(tmp_path / "bytes", "llama")
    refused(
        with_lm(backbone=PretrainedBackboneConfig(pretrained=str(tmp_path / "bytes")), text_tokenizer=None),
        config,
        "describe: text_config",
    )


def test_a_later_stage_may_hold_longer_rows(ready: Path, first: Path, tmp_path: Path) -> None:
    config = stage_run(ready, tmp_path / "run", "pretrain", first)
    backbone = replace(config.lm.backbone, context=120)
    config = replace(
        config,
        lm=replace(config.lm, backbone=backbone),
        data=replace(config.data, row_length=120),
    )
    train_lm(config)
    assert load_unified_lm(tmp_path / "run").config.backbone_config.max_position_embeddings == 120


def test_another_tower_under_the_same_name_is_told_by_its_weights(
    ready: Path,
    first: Path,
    tmp_path: Path,
) -> None:
    torch.manual_seed(9)
    make_tower().save_pretrained(tmp_path / "tower" / "model")
    config = stage_run(ready, tmp_path / "run", "pretrain", first)
    config = replace(config, lm=replace(config.lm, tower=str(tmp_path / "tower")))
    refused(lambda c: c, config, "were made with the tower|was trained with the tower")


@pytest.mark.parametrize(
    ("stage", "lora", "sentence"),
    [
        (StageConfig(rates=PartRates(depth=-1)), 0, "stage.rates.depth is -1"),
        (StageConfig(rates=PartRates(depth=float("nan"))), 0, "stage.rates.depth is nan"),
        (StageConfig(rates=PartRates(backbone=0, projector=0, depth=0)), 0, "stage.rates freezes every part"),
        (
            StageConfig(rates=PartRates(backbone=0)),
            4,
            "the adapters would not be trained; set lm.lora.rank=0",
        ),
    ],
)
def test_stages_that_train_nothing_are_refused(
    ready: Path,
    tmp_path: Path,
    stage: StageConfig,
    lora: int,
    sentence: str,
) -> None:
    config = config_for(ready, tmp_path / "run")
    config = replace(config, lm=replace(config.lm, lora=LoraConfig(rank=lora)))
    refused(lambda c: replace(c, stage=stage), config, sentence)
