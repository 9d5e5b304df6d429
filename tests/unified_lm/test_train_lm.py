"""`vilau train-lm` from its entry function: a tower, its codes, a few steps; resumed = uninterrupted."""

from __future__ import annotations

import io
import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_lm import CAPTIONS, IMAGE_SIZE, QUESTIONS, assert_same_state, lm_config, make_tower, state_of
from torch import Tensor

from vilau_common.data.loader import LoaderConfig
from vilau_common.data.shards import ShardWriter
from vilau_common.data.text_tokenizer import train_text_tokenizer
from vilau_common.errors import UserError
from vilau_common.training import OptimizerConfig, TrainingConfig, TrainingInterrupted, TrainingResult
from vilau_unified_lm.data import DocumentDataConfig, MixtureConfig
from vilau_unified_lm.document import DocumentBuilder
from vilau_unified_lm.generation.engine import Engine
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.losses import LossConfig
from vilau_unified_lm.model import load_unified_lm
from vilau_unified_lm.task import UnifiedTask
from vilau_unified_lm.train import TrainLmConfig, train_lm
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.clip import load_text_tokenizer
from vilau_vision_tower.tokenize import TokenizeConfig, tokenize
from vilau_vision_tower.tower import load_tower

STEPS = 4


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tower/, tokenizer/ and codes/ as the stages before the LM leave them."""
    directory = tmp_path_factory.mktemp("ready")
    torch.manual_seed(0)
    make_tower().save_pretrained(directory / "tower" / "model")
    train_text_tokenizer(CAPTIONS, directory / "tokenizer", vocabulary_size=300)
    rng = np.random.default_rng(0)
    with ShardWriter(directory / "data" / "train", {}, samples_per_shard=20) as writer:
        for number in range(40):
            file = io.BytesIO()
            Image.fromarray(rng.integers(256, size=(IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)).save(
                file, "PNG"
            )
            record = {"captions": CAPTIONS, "questions": QUESTIONS, "scene": None, "texts": CAPTIONS}
            writer.write(f"{number:04d}", {"png": file.getvalue(), "json": json.dumps(record).encode()})
    tokenize(
        TokenizeConfig(
            tower_directory=str(directory / "tower"),
            data=str(directory / "data"),
            directory=str(directory / "codes"),
        )
    )
    return directory


def config_for(ready: Path, run: Path, **training: Any) -> TrainLmConfig:
    """All of the state in play.

    Packing buffer, dropout, a random share of positions, averaged weights, both optimisers, accumulation.
    """
    settings: dict[str, Any] = {
        "steps": STEPS,
        "accumulation": 2,
        "log_every": 1,
        "checkpoint_every": 10,
        "ema_decay": 0.9,
        "optimizer": OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.1),
    }
    return TrainLmConfig(
        directory=str(run),
        data=DocumentDataConfig(
            directory=str(ready / "codes"),
            mixture=MixtureConfig(),
            row_length=80,
            loader=LoaderConfig(batch_size=2, workers=0, shuffle_buffer=20, packing_buffer=15),
        ),
        lm=lm_config(str(ready / "tower"), str(ready / "tokenizer")),
        loss=LossConfig(depth_share=0.5),
        training=TrainingConfig(**{**settings, **training}),
    )


@dataclass
class EndState:
    """What a run leaves behind."""

    metrics: list[dict[str, Any]]  # without times
    weights: dict[str, Tensor]  # of the model
    checkpoint: dict[str, Tensor]

    @staticmethod
    def of(run: Path) -> EndState:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return EndState(
            [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines],
            load_file(run / "model" / "model.safetensors"),
            load_file(run / "checkpoints" / f"step_{STEPS:06d}" / "weights.safetensors"),
        )


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
            "data.row_length is 97, but lm.backbone.context holds 96",
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
