"""`vilau train-vila` and `vilau evaluate` from their entry functions; resumed = uninterrupted; misuse."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tiny_lm import assert_same_state
from tiny_vila import save_clip, vila_settings

from vilau_common.data.loader import LoaderConfig
from vilau_common.data.prepare import PrepareConfig, prepare
from vilau_common.data.split import load_split
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.errors import UserError
from vilau_common.training import OptimizerConfig, TrainingConfig, TrainingInterrupted
from vilau_unified_lm import use
from vilau_unified_lm.data import MixtureConfig
from vilau_unified_lm.evaluation.run import EvaluateConfig, evaluate
from vilau_unified_lm.vila.data import PictureDataConfig
from vilau_unified_lm.vila.session import VilaSession
from vilau_unified_lm.vila.task import VilaTask
from vilau_unified_lm.vila.train import TrainVilaConfig, train_vila
from vilau_vision_tower.clip import load_text_tokenizer

STEPS = 4


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ of the scenes world and clip/, as the stages before leave them."""
    directory = tmp_path_factory.mktemp("ready")
    source = ScenesConfig(image_size=24, train_count=60, test_count=6, held_out_count=3)
    prepare(PrepareConfig(directory=str(directory / "data"), source=source))
    save_clip(directory / "clip", load_text_tokenizer(directory / "data" / "tokenizer"))
    return directory


def config_for(ready: Path, run: Path, **training: Any) -> TrainVilaConfig:
    settings: dict[str, Any] = {
        "steps": STEPS,
        "log_every": 1,
        "checkpoint_every": 10,
        "optimizer": OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.1),
    }
    return TrainVilaConfig(
        directory=str(run),
        data=PictureDataConfig(
            directory=str(ready / "data"),
            image_size=24,
            mixture=MixtureConfig(text_to_image=0.0),
            row_length=96,
            questions_per_document=2,
            loader=LoaderConfig(batch_size=2, workers=0, shuffle_buffer=20, packing_buffer=15),
        ),
        vila=vila_settings(str(ready / "clip"), str(ready / "data" / "tokenizer"), downsample=2),
        training=TrainingConfig(**{**settings, **training}),
    )


@pytest.fixture(scope="module")
def finished(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "vila"
    assert train_vila(config_for(ready, run)).step == STEPS
    return run


def metrics(run: Path) -> list[dict[str, Any]]:
    """Without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: v for key, v in line.items() if not key.startswith("time/")} for line in lines]


def test_training_tells_its_text_loss_and_leaves_the_encoder_out_of_checkpoints(finished: Path) -> None:
    lines = metrics(finished)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(line["loss/main"] == pytest.approx(line["train/loss/text"]) for line in lines)
    checkpoint = load_file(finished / "checkpoints" / f"step_{STEPS:06d}" / "weights.safetensors")
    assert not any("encoder." in name for name in checkpoint)
    assert any("encoder." in name for name in load_file(finished / "model" / "model.safetensors"))


def test_two_steps_and_two_resumed_are_four_bit_for_bit(
    ready: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(ready, tmp_path / "vila")
    with monkeypatch.context() as patch:
        patch.setattr(
            VilaTask,
            "after_step",
            lambda task, step: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None,
        )
        with pytest.raises(TrainingInterrupted):
            train_vila(config)
    train_vila(config)
    assert metrics(tmp_path / "vila") == metrics(finished)
    name = Path("model") / "model.safetensors"
    assert_same_state(load_file(tmp_path / "vila" / name), load_file(finished / name))


def test_evaluation_asks_the_test_questions_and_names_them_as_a_unified_lms(
    ready: Path, finished: Path
) -> None:
    config = EvaluateConfig(directory=str(finished), data=str(ready / "data"), questions=20, examples=4)
    results = evaluate(config)
    assert json.loads((finished / "results.json").read_text()) == results
    for prefix in ("", "held_out/"):
        assert {f"{prefix}lm/question_accuracy", f"{prefix}lm/caption_scene_accuracy"} <= results.keys()
        assert any(key.startswith(f"{prefix}lm/question_accuracy/") for key in results)
    assert all(key.split("/")[-1] != "psnr" and "draw" not in key for key in results)
    # One by one, the answers are those that were counted.
    split = load_split(ready / "data" / "test")
    session = VilaSession.open(finished)
    pairs = [(index, item) for index, items in enumerate(split.questions) for item in items][:20]
    right = [session.answer([split.images[i]], [q.question], 64) == [q.answer] for i, q in pairs]
    assert results["lm/question_accuracy"] == pytest.approx(np.mean(right))
    shown = json.loads((finished / "evaluation" / "examples.json").read_text())
    assert shown["answers"] and shown["captions"]
    assert all((finished / "evaluation" / example["picture"]).is_file() for example in shown["answers"])


def test_a_trained_run_answers_but_does_not_draw(finished: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((30, 50, 3), 200, np.uint8)).save(picture)
    assert isinstance(use.ask(run=finished, image=picture, question="how many objects are there?"), str)
    with pytest.raises(UserError, match="holds a VILA, .* no codes"):
        use.reconstruct(run=finished, image=picture, output=tmp_path / "out.png")


def test_mistakes_are_told_and_do_not_claim_the_directory(ready: Path, tmp_path: Path) -> None:
    config = config_for(ready, tmp_path / "vila", steps=1)
    vila, data, missing = config.vila, config.data, str(tmp_path / "nowhere")
    wrong = [
        (
            replace(config, vila=replace(vila, clip=replace(vila.clip, pretrained=missing))),
            "no CLIP in .*nowhere",
        ),
        (replace(config, vila=replace(vila, text_tokenizer=missing)), "no text tokenizer in .*nowhere"),
        (replace(config, data=replace(data, directory=missing)), "data set not prepared: .*nowhere"),
        (
            replace(config, data=replace(data, row_length=97)),
            "data.row_length is 97, but the backbone's context holds 96",
        ),
        (replace(config, vila=replace(vila, backbone=replace(vila.backbone, heads=5))), "not a multiple of"),
        (replace(config, data=replace(data, mixture=MixtureConfig())), "draws none"),
    ]
    for mistaken, sentence in wrong:
        with pytest.raises(UserError, match=sentence):
            train_vila(mistaken)
    assert not (tmp_path / "vila" / "config.yaml").exists()
    assert train_vila(config).step == 1
    with pytest.raises(UserError, match="there is no run directory"):
        evaluate(EvaluateConfig(directory=missing, data=str(ready / "data")))
