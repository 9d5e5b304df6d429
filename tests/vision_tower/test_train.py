"""Both trainings from a prepared data set to a saved model, through the functions that the commands call."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from tiny_tower import DECODER, IMAGE_SIZE, adversarial_weights, stand_in_config
from torch import Tensor

from vilau_common.config import load_config
from vilau_common.data.loader import LoaderConfig
from vilau_common.errors import UserError
from vilau_common.images import to_tensor
from vilau_common.training import OptimizerConfig, TrainingConfig, TrainingInterrupted
from vilau_common.training import checkpoint as checkpoints
from vilau_vision_tower import train as train_module
from vilau_vision_tower.clip import TextEncoder, load_clip
from vilau_vision_tower.clip.config import SiglipClipConfig
from vilau_vision_tower.data import CaptionDataConfig, read_images
from vilau_vision_tower.discriminator import DiscriminatorConfig
from vilau_vision_tower.losses import (
    AdversarialConfig,
    ContrastiveConfig,
    PerceptualConfig,
    TowerLossConfig,
    psnr,
)
from vilau_vision_tower.quantizer import QuantizerConfig
from vilau_vision_tower.quantizer.library import FsqConfig, LfqConfig
from vilau_vision_tower.task import TEXT_ENCODER, TowerTask
from vilau_vision_tower.tower import load_tower
from vilau_vision_tower.train import SCHEMA_GROUPS, TowerConfig, TrainTowerConfig, train_tower
from vilau_vision_tower.train_clip import TrainClipConfig, train_clip

STEPS = 4


def data_config(scenes: Path, **changes: Any) -> CaptionDataConfig:
    loader = LoaderConfig(batch_size=8, workers=0, shuffle_buffer=16)
    settings = {"directory": str(scenes), "image_size": IMAGE_SIZE, "hard_negatives": 2, "loader": loader}
    return CaptionDataConfig(**{**settings, **changes})


def training_config(**changes: Any) -> TrainingConfig:
    settings = {"steps": STEPS, "log_every": 1, "checkpoint_every": 2}
    return TrainingConfig(**{**settings, "optimizer": OptimizerConfig(learning_rate=3e-3), **changes})


@pytest.fixture(scope="module")
def clip_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP trained for two steps."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("runs") / "clip"
    result = train_clip(
        TrainClipConfig(
            directory=str(directory),
            data=data_config(scenes),
            clip=stand_in_config(text_length=40),
            training=training_config(steps=2),
        )
    )
    assert result.step == 2
    return directory


@pytest.fixture
def config(scenes: Path, clip_run: Path, tmp_path: Path) -> TrainTowerConfig:
    return TrainTowerConfig(
        directory=str(tmp_path / "tower"),
        data=data_config(scenes),
        tower=TowerConfig(
            clip=SiglipClipConfig(pretrained=str(clip_run)),
            # So small a decay that codes die and restart all the time, by random numbers.
            quantizer=QuantizerConfig(codebook_size=16, depth=2, ema_decay=0.5, restart_below=0.5),
            decoder=DECODER,
        ),
        training=training_config(),
    )


def metrics_of(run: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


def weights_of(run: str) -> dict[str, Tensor]:
    """The newest checkpoint's weights and the saved model's."""
    newest = checkpoints.newest_good(Path(run) / "checkpoints")
    assert newest is not None
    trained = checkpoints.read(newest, lambda path, trainer: None).weights
    return {
        **trained,
        **{f"model.{k}": v for k, v in load_file(Path(run) / "model/model.safetensors").items()},
    }


def test_a_tower_is_trained_from_a_clip(config: TrainTowerConfig, clip_run: Path) -> None:
    result = train_tower(config)
    assert result.step == STEPS
    lines = metrics_of(config.directory)
    logged = [line for line in lines if "train/loss/l2" in line]
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    assert {f"train/loss/{term}" for term in ("l1", "l2", "contrastive", "commitment", "codebook")} <= logged[
        0
    ].keys()
    assert logged[0]["train/codebook_restarts"] == 0 and any(
        line["train/codebook_restarts"] for line in logged
    )
    assert result.metrics["psnr"] == [line for line in lines if "evaluate/psnr" in line][-1]["evaluate/psnr"]

    tower, (clip, tokenizer) = load_tower(config.directory), load_clip(clip_run / "model")
    images = to_tensor(read_images(Path(config.data.directory) / "test", size=config.data.image_size))
    measured = psnr(images, tower.decode(tower.encode(images))).mean().item()
    assert result.metrics["psnr"] == pytest.approx(measured, rel=1e-4), "on the test split"
    assert (tower.depth, tower.codebook_size, tower.image_size) == (2, 16, IMAGE_SIZE)
    assert tower.quantizer.started
    change = (
        tower.encoder.model.embeddings.patch_embedding.weight
        - clip.vision_model.embeddings.patch_embedding.weight
    )
    assert 0 < change.abs().max() < 0.1, "it began at CLIP's weights and went on from there"
    texts = TextEncoder.from_pretrained(Path(config.directory) / "model" / TEXT_ENCODER)
    expected = TextEncoder(clip.text_model, tokenizer).embed(["a red circle"])
    torch.testing.assert_close(texts.embed(["a red circle"]), expected)
    assert list((Path(config.directory) / "samples").rglob("*.png"))


def test_every_loss_is_configuration() -> None:
    overrides = [
        "loss={l1: 0.2, contrastive: 0.5, commitment: 0.1}",
        "loss.perceptual={kind: clip, weight: 2.0, clip_layers: [2]}",
        "loss.adversarial={weight: 0.75, start_step: 9, adaptive: true, discriminator: {layers: 2}}",
        "+training.other_optimizers={discriminator: {learning_rate: 4e-5, betas: [0.5, 0.9]}}",
    ]
    config = load_config("train_tower", overrides, TrainTowerConfig, groups=SCHEMA_GROUPS)
    assert config.loss == TowerLossConfig(
        l1=0.2,
        l2=4.0,  # the experiment's
        contrastive=0.5,
        commitment=0.1,
        perceptual=PerceptualConfig(kind="clip", weight=2.0, clip_layers=[2]),
        adversarial=AdversarialConfig(
            weight=0.75, start_step=9, adaptive=True, discriminator=DiscriminatorConfig(layers=2)
        ),
    )
    settings = config.training.optimizer_named("discriminator")
    assert (settings.learning_rate, settings.betas) == (4e-5, (0.5, 0.9))
    with pytest.raises(UserError, match="loss.perceptual.kind is 'vgg'; the choices are none, lpips, clip"):
        load_config("train_tower", ["loss.perceptual.kind=vgg"], TrainTowerConfig, groups=SCHEMA_GROUPS)


def test_a_finished_training_is_not_repeated(config: TrainTowerConfig) -> None:
    train_tower(config)
    before = weights_of(config.directory)
    assert train_tower(config).already_finished
    assert weights_of(config.directory).keys() == before.keys()


@pytest.mark.parametrize(
    "loss",
    [TowerLossConfig(), *(TowerLossConfig(**adversarial_weights(start_step=start)) for start in (1, 3))],
    ids=["plain", "discriminator before", "discriminator after"],
)
def test_interrupted_and_resumed_it_ends_the_same(
    config: TrainTowerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: TowerLossConfig
) -> None:
    """Weights, codebooks and metrics, to the last bit; also where the discriminator starts around the stop."""
    config.loss = loss
    config.training.other_optimizers = {"discriminator": OptimizerConfig(learning_rate=1e-3)}
    train_tower(config)
    again = dataclasses.replace(config, directory=str(tmp_path / "again"))

    after_step = TowerTask.after_step

    def stop_after_two_steps(task: TowerTask, step: int) -> None:
        after_step(task, step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TowerTask, "after_step", stop_after_two_steps)
        with pytest.raises(TrainingInterrupted, match="stopped at step 2"):
            train_tower(again)
    assert not (Path(again.directory) / "model").exists()
    assert train_tower(again).step == STEPS
    assert metrics_of(again.directory) == metrics_of(config.directory)
    whole, resumed = weights_of(config.directory), weights_of(again.directory)
    assert resumed.keys() == whole.keys()
    assert "tower.quantizer.codebooks" in whole
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_the_seed_decides(config: TrainTowerConfig, tmp_path: Path) -> None:
    config.training = training_config(steps=1)
    runs = [
        dataclasses.replace(config, seed=seed, directory=str(tmp_path / f"seed_{number}"))
        for number, seed in enumerate((1, 1, 2))
    ]
    for each in runs:
        train_tower(each)
    first, second, third = (weights_of(each.directory)["tower.quantizer.codebooks"] for each in runs)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_a_saved_model_names_no_place_outside_it(config: TrainTowerConfig, tmp_path: Path) -> None:
    config.training = training_config(steps=1)
    train_tower(config)
    for file in (Path(config.directory) / "model").rglob("*.json"):
        assert str(tmp_path.parent) not in file.read_text(), file.name


def test_what_is_missing_or_does_not_fit_is_told_in_a_sentence(
    config: TrainTowerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "train", lambda *args, **kwargs: pytest.fail("training began"))
    nowhere = SiglipClipConfig(pretrained="nowhere")
    with pytest.raises(UserError, match="no CLIP in .*nowhere"):
        train_tower(dataclasses.replace(config, tower=dataclasses.replace(config.tower, clip=nowhere)))
    no_lpips = PerceptualConfig(kind="lpips", weights="nowhere.pth")
    with pytest.raises(UserError, match="loss.perceptual.weights=nowhere.pth: there is no such file"):
        train_tower(dataclasses.replace(config, loss=TowerLossConfig(perceptual=no_lpips)))
    assert not Path(config.directory, "config.yaml").exists(), "the directory is free"
    with pytest.raises(UserError, match="data set not prepared: "):
        train_tower(
            dataclasses.replace(
                config,
                directory=str(tmp_path / "one"),
                data=dataclasses.replace(config.data, directory=str(tmp_path / "nowhere")),
            )
        )


def test_the_discriminators_optimiser_is_named_and_named_right(
    config: TrainTowerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "train", lambda *args, **kwargs: None)
    config.loss = TowerLossConfig(**adversarial_weights())
    with pytest.raises(
        UserError, match="but the discriminator has no optimiser: set .training.other_optimizers="
    ):
        train_tower(config)
    config.training.other_optimizers = {"discriminater": OptimizerConfig()}
    with pytest.raises(
        UserError, match="other_optimizers.discriminater is of no optimiser .* are discriminator"
    ):
        train_tower(config)
    assert not Path(config.directory, "config.yaml").exists(), "the directory is free"
    config.training.other_optimizers = {"discriminator": OptimizerConfig()}
    train_tower(config)
    # Its settings may stay where it is switched off for a comparison.
    train_tower(dataclasses.replace(config, directory=config.directory + "_off", loss=TowerLossConfig()))


def test_weights_are_averaged_only_with_codebooks_that_are_averaged_too(
    config: TrainTowerConfig, tmp_path: Path
) -> None:
    config.training = training_config(ema_decay=0.5)
    learned = QuantizerConfig(codebook_size=16, depth=2, codebook_update="gradient")
    for quantizer in (config.tower.quantizer, learned):
        tower = dataclasses.replace(config.tower, quantizer=quantizer)
        with pytest.raises(
            UserError, match="training.ema_decay averages weights .* codebooks follow the present"
        ):
            train_tower(dataclasses.replace(config, tower=tower))
    assert not Path(config.directory).exists()
    still = dataclasses.replace(learned, restart_below=0.0)
    for name, quantizer in (("learned", still), ("fsq", FsqConfig(levels=[4, 4], depth=2))):
        tower = dataclasses.replace(config.tower, quantizer=quantizer)
        run = str(tmp_path / name)
        result = train_tower(dataclasses.replace(config, tower=tower, directory=run))
        images = to_tensor(read_images(Path(config.data.directory) / "test", size=IMAGE_SIZE))
        saved = load_tower(run)
        measured = psnr(images, saved.decode(saved.encode(images))).mean().item()
        assert result.metrics["psnr"] == pytest.approx(measured, rel=1e-4), "of the averaged weights"


def test_a_quantiser_that_trains_alone_is_refused_before_the_directory_is_taken(
    config: TrainTowerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config.tower.quantizer = LfqConfig(codebook_size=16, depth=2)
    with pytest.raises(UserError, match="quantizer.kind=lfq trains in one process only"):
        train_tower(config)
    assert not Path(config.directory, "config.yaml").exists()


def test_a_run_goes_on_with_its_own_settings_only(config: TrainTowerConfig) -> None:
    train_tower(config)
    config.tower.quantizer.depth = 3
    with pytest.raises(UserError, match=r"another configuration \(tower.quantizer.depth 2 -> 3\)"):
        train_tower(config)


def test_a_run_goes_on_from_its_own_clip_only(config: TrainTowerConfig, tmp_path: Path) -> None:
    assert isinstance(config.tower.clip, SiglipClipConfig)
    copy = shutil.copytree(config.tower.clip.pretrained, tmp_path / "clip")
    config.tower.clip = SiglipClipConfig(pretrained=str(copy))
    train_tower(config)
    weights = copy / "model" / "model.safetensors"
    state = load_file(weights)
    save_file({**state, "logit_scale": state["logit_scale"] + 1}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r'another configuration \(clip_fingerprint "\w+" -> "\w+"\)'):
        train_tower(config)


def test_lpips_weights_may_move_but_not_change(config: TrainTowerConfig, tmp_path: Path) -> None:
    def with_trunk(name: str, scale: float) -> TrainTowerConfig:
        state = torchvision.models.alexnet(weights=None).features.state_dict()
        torch.save(
            {f"features.{key}": scale * torch.ones_like(value) for key, value in state.items()},
            tmp_path / name,
        )
        perceptual = PerceptualConfig(kind="lpips", network="alex", weights=str(tmp_path / name))
        return dataclasses.replace(config, loss=TowerLossConfig(perceptual=perceptual))

    config.training = training_config(steps=1)
    here = with_trunk("here.pth", 0.01)
    train_tower(here)
    there = with_trunk("there.pth", 0.02)
    with pytest.raises(UserError, match=r'another configuration \(lpips_fingerprint "\w+" -> "\w+"\)'):
        train_tower(there)
    (tmp_path / "here.pth").rename(tmp_path / "there.pth")
    assert train_tower(there).already_finished


def test_the_contrastive_loss_can_go_on_where_the_clips_stopped(
    config: TrainTowerConfig, clip_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[TowerTask] = []
    monkeypatch.setattr(train_module, "train", lambda task, *args, **kwargs: tasks.append(task))
    config.contrastive = ContrastiveConfig(kind="sigmoid", scale=None, bias=None)
    train_tower(config)
    (loss,) = (task.network.contrastive for task in tasks)
    clip, _ = load_clip(clip_run / "model")
    assert loss.log_scale.item() == pytest.approx(clip.logit_scale.item(), rel=1e-5)
    assert loss.bias.item() == pytest.approx(clip.logit_bias.item(), rel=1e-5)


def test_clip_needs_a_text_tokenizer(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(scenes / "train")
    with pytest.raises(UserError, match="no text tokenizer in"):
        train_clip(
            TrainClipConfig(
                directory=str(tmp_path / "clip"),
                data=data_config(tmp_path / "data"),
                clip=stand_in_config(),
                training=training_config(),
            )
        )


def test_gradient_checkpointing_may_be_changed_and_changes_nothing(
    config: TrainTowerConfig, tmp_path: Path
) -> None:
    train_tower(config)
    tower = dataclasses.replace(config.tower, gradient_checkpointing=True)
    again = dataclasses.replace(config, directory=str(tmp_path / "again"), tower=tower)
    train_tower(again)
    whole, computed_again = weights_of(config.directory), weights_of(again.directory)
    for name, value in whole.items():
        assert torch.equal(computed_again[name], value), name
    assert train_tower(dataclasses.replace(config, tower=tower)).already_finished
