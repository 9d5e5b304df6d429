"""`vilau train-lm` from its entry function: a tower, its codes, a few steps; resumed = uninterrupted."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_lm import CAPTIONS, IMAGE_SIZE, QUESTIONS, assert_same_state, make_tower, state_of
from tiny_run import STEPS, EndState, config_for

from vilau_common.errors import UserError
from vilau_common.training import OptimizerConfig, TrainingInterrupted, TrainingResult
from vilau_unified_lm.data import BlendConfig
from vilau_unified_lm.document import DocumentBuilder
from vilau_unified_lm.generation.engine import Engine
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.losses import LossConfig
from vilau_unified_lm.model import load_unified_lm
from vilau_unified_lm.task import UnifiedTask
from vilau_unified_lm.train import TrainLmConfig, train_lm
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.clip import load_text_tokenizer
from vilau_vision_tower.tower import load_tower


@pytest.fixture(scope="module")
def finished(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingResult]:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("run") / "lm"
    return run, train_lm(config_for(ready, run))


def test_leaves_a_model_that_draws_and_answers(ready: Path, finished: tuple[Path, TrainingResult]) -> None:
    run, result = finished
    assert result.step == STEPS and not result.already_finished
    model, tokenizer = load_unified_lm(run), load_text_tokenizer(run / "model")
    assert_same_state(state_of(model.vision_tower), state_of(load_tower(ready / "tower")))
    vocabulary = Vocabulary.from_tokenizer(
        tokenizer, model.vision_tower.codebook_size, model.vision_tower.depth
    )
    builder = DocumentBuilder(tokenizer, vocabulary)
    engine = Engine(model)
    codes = engine.draw([builder.drawing_prompt(CAPTIONS[0])], builder.drawing_prompt(""), Sampling(), [0])
    assert model.image_tokenizer.decode(codes).shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    prompt = builder.question_prompt(codes[0].numpy(), QUESTIONS[0]["question"])
    (answer,) = engine.write([prompt], vocabulary.end, 5, Sampling(), [0])
    assert all(0 <= token < vocabulary.text_size for token in answer)


def test_metrics_tell_both_losses_and_every_depth(finished: tuple[Path, TrainingResult]) -> None:
    lines = EndState.of(finished[0]).metrics
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        parts = line["train/loss/text"], line["train/loss/visual"]
        assert line["loss/main"] == pytest.approx(sum(parts), rel=1e-5)
        assert parts[1] == pytest.approx(np.mean([line[f"train/loss/visual_d{depth}"] for depth in range(4)]))


def test_checkpoints_leave_the_tower_out(finished: tuple[Path, TrainingResult]) -> None:
    state = EndState.of(finished[0])
    assert not any(name.startswith("vision_tower.") for name in state.checkpoint)
    assert any(name.startswith("vision_tower.") for name in state.weights)


def test_two_steps_and_two_resumed_are_four_bit_for_bit(
    ready: Path, finished: tuple[Path, TrainingResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(ready, tmp_path / "lm")
    with monkeypatch.context() as patch:
        patch.setattr(
            UnifiedTask,
            "after_step",
            lambda task, step: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None,
        )
        with pytest.raises(TrainingInterrupted):
            train_lm(config)
    assert [path.name for path in (tmp_path / "lm" / "checkpoints").iterdir()] == ["step_000002"]
    torch.randn(5)  # what happens between two starts must not matter
    train_lm(config)
    resumed, uninterrupted = EndState.of(tmp_path / "lm"), EndState.of(finished[0])
    assert resumed.metrics == uninterrupted.metrics
    assert_same_state(resumed.checkpoint, uninterrupted.checkpoint)
    assert_same_state(resumed.weights, uninterrupted.weights)


def test_a_finished_run_is_not_repeated(ready: Path, finished: tuple[Path, TrainingResult]) -> None:
    before = (finished[0] / "metrics.jsonl").read_bytes()
    assert train_lm(config_for(ready, finished[0])).already_finished
    assert (finished[0] / "metrics.jsonl").read_bytes() == before


def test_a_run_goes_on_with_its_data_elsewhere_and_more_bad_samples_allowed_but_not_with_another_blend(
    ready: Path, tmp_path: Path
) -> None:
    def config(directory: Path, weight: float, share: float) -> TrainLmConfig:
        config = config_for(ready, tmp_path / "lm", steps=1)
        blend = [
            BlendConfig(directory=str(directory), form="text_to_image"),
            BlendConfig(directory=str(directory), form="text", weight=weight),
        ]
        loader = replace(config.data.loader, max_bad_share=share)
        return replace(config, data=replace(config.data, directory=None, blend=blend, loader=loader))

    assert train_lm(config(ready / "codes", 0.5, 0.01)).step == 1
    (tmp_path / "moved").symlink_to(ready / "codes")
    assert train_lm(config(tmp_path / "moved", 0.5, 0.2)).already_finished
    with pytest.raises(UserError, match=r"data.blend.1.weight 0.5 -> 0.7"):
        train_lm(config(ready / "codes", 0.7, 0.01))


def test_another_seed_gives_another_model(
    ready: Path, finished: tuple[Path, TrainingResult], tmp_path: Path
) -> None:
    train_lm(replace(config_for(ready, tmp_path), seed=1))
    name = "llm.model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(EndState.of(tmp_path).weights[name], EndState.of(finished[0]).weights[name])


def test_missing_parts_are_told(ready: Path, tmp_path: Path) -> None:
    config = config_for(ready, tmp_path / "lm")
    missing = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no vision tower in .*nowhere: .*`make train-tower` trains one"):
        train_lm(replace(config, lm=replace(config.lm, tower=missing)))
    with pytest.raises(UserError, match="no text tokenizer in .*nowhere"):
        train_lm(replace(config, lm=replace(config.lm, text_tokenizer=missing)))
    with pytest.raises(UserError, match="data set not prepared: .*nowhere.*`vilau tokenize` makes it"):
        train_lm(replace(config, data=replace(config.data, directory=missing)))


def test_sizes_that_do_not_fit_are_told_and_do_not_claim_the_directory(ready: Path, tmp_path: Path) -> None:
    config = config_for(ready, tmp_path / "lm", steps=1)
    backbone = config.lm.backbone
    for lm, data, sentence in (
        (
            config.lm,
            replace(config.data, row_length=97),
            "data.row_length is 97, but the backbone's context holds 96",
        ),
        (
            replace(config.lm, backbone=replace(backbone, heads=5)),
            config.data,
            "lm.backbone.width 32 is not a",
        ),
        (
            replace(config.lm, backbone=replace(backbone, key_value_heads=3)),
            config.data,
            "lm.backbone.heads 4 is not a multiple of lm.backbone.key_value_heads 3",
        ),
        (replace(config.lm, depth=replace(config.lm.depth, heads=5)), config.data, "depth.width 24 is not a"),
        (config.lm, replace(config.data, blank_share=2), "data.blank_share is 2"),
        (replace(config.lm, attention="flash"), config.data, "lm.attention is 'flash'"),
    ):
        with pytest.raises(UserError, match=sentence):
            train_lm(replace(config, lm=lm, data=data))
    with pytest.raises(UserError, match="loss.depth_share is 0"):
        train_lm(replace(config, loss=LossConfig(depth_share=0)))
    unknown = replace(config.training, other_optimizers={"discriminator": OptimizerConfig()})
    with pytest.raises(UserError, match="other_optimizers.discriminator is of no optimiser of this training"):
        train_lm(replace(config, training=unknown))
    for setting in ("evaluate_every", "sample_every"):
        idle = replace(config.training, **{setting: 1})
        with pytest.raises(UserError, match=f"training.{setting} is 1, but this training does neither"):
            train_lm(replace(config, training=idle))
    # The corrected command goes through.
    assert train_lm(config).step == 1


def test_another_tower_in_the_same_place_is_refused(ready: Path, tmp_path: Path) -> None:
    """The codes name the tower that made them, by its weights and not by its path."""
    torch.manual_seed(7)
    make_tower().save_pretrained(tmp_path / "tower" / "model")
    config = config_for(ready, tmp_path / "lm")
    with pytest.raises(
        UserError, match="were made with the tower .*other weights.* `vilau tokenize` with it"
    ):
        train_lm(replace(config, lm=replace(config.lm, tower=str(tmp_path / "tower"))))
