"""`vilau evaluate-tower` as a whole, on a tiny tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluated import batch_of
from PIL import Image
from tiny_tower import IMAGE_SIZE
from transformers import PreTrainedTokenizerFast, SiglipModel

from vilau_common.data.split import load_split
from vilau_common.data.worlds.registry import world_of
from vilau_common.errors import UserError
from vilau_common.images import to_tensor
from vilau_common.report.numbers import shown
from vilau_vision_tower.clip import TextEncoder
from vilau_vision_tower.data import read_images
from vilau_vision_tower.evaluation.config import EvaluateTowerConfig
from vilau_vision_tower.evaluation.grids import Grids
from vilau_vision_tower.evaluation.metric import NotComputed
from vilau_vision_tower.evaluation.run import evaluate_tower
from vilau_vision_tower.evaluation.world import ReadBack, evaluate_on_world
from vilau_vision_tower.losses import psnr
from vilau_vision_tower.task import TEXT_ENCODER
from vilau_vision_tower.tower import VisionTower


@pytest.fixture
def run(tower: VisionTower, clip: SiglipModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A run directory of train-tower, as far as an evaluation looks at it."""
    directory = tmp_path / "tower"
    tower.save_pretrained(directory / "model")
    TextEncoder(clip.text_model, tokenizer).save_pretrained(directory / "model" / TEXT_ENCODER)
    clip.save_pretrained(tmp_path / "clip")
    (directory / "config.yaml").write_text(f"tower: {{clip: {{pretrained: {tmp_path / 'clip'}}}}}")
    return directory


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def config(run: Path, data: Path, **changes: Any) -> EvaluateTowerConfig:
    settings = {"batch_size": 5, "threads": 1, "features": "clip", "lpips": None, "grid": 4, **changes}
    return EvaluateTowerConfig(
        tower_directory=str(run), data=str(data), directory=str(run / "evaluation"), **settings
    )


def test_a_world_is_measured_as_the_whole_line_does(
    run: Path, scenes: Path, tower: VisionTower, clip: SiglipModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = evaluate_tower(config(run, scenes, near_misses=4))
    split = load_split(scenes / "test")
    whole = evaluate_on_world(
        tower, TextEncoder(clip.text_model, tokenizer), world_of(scenes / "test"), split, 4
    ).metrics
    assert len(whole) > 10
    for name, value in whole.items():
        assert found[f"tower/{name}"] == pytest.approx(value, rel=1e-4), name
    assert found["tower/bits_per_position"] == 3 * 5
    assert (found["tower/pictures"], found["tower/skipped_pictures"], found["tower/positions"]) == (12, 0, 16)
    assert {
        "tower/rfid_clip",
        "tower/kid_clip",
        "tower/ssim",
        "tower/retrieval_image_to_text_r1",
    } <= found.keys()
    assert found["tower/encode_pictures_per_second"] > 0
    written = json.loads((run / "evaluation" / "results.json").read_text())
    assert written == found
    assert all(isinstance(value, float | int) for value in written.values())


def test_a_folder_in_classes_of_any_size_with_a_damaged_picture(
    run: Path, tmp_path: Path, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "pictures"
    for index, name in enumerate(["ape", "bee", "ape", "bee", "cow"]):
        (data / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / name / f"{index}.png")
    (data / "bee" / "bad.png").write_text("no picture")
    classes = tmp_path / "classes.txt"
    classes.write_text("ape\nbee\ncow\n")
    found = evaluate_tower(
        config(
            run,
            data,
            classes=str(classes),
            templates="simple",
            lpips="alex",
            features="inception",
            max_bad_share=0.3,
            pictures=6,
        )
    )
    assert (found["tower/pictures"], found["tower/skipped_pictures"]) == (5, 1)
    assert 0 <= found["tower/zero_shot_top1"] <= 1
    assert not any(
        name in key for key in found for name in ("lpips", "rfid", "kid", "retrieval", "read_back")
    )
    evaluation = run / "evaluation"
    lacking = json.loads((evaluation / "not_computed.json").read_text())
    assert set(lacking) == {"lpips_alex", "rfid", "kid", "retrieval"}
    assert "lpips_weights=FILE" in lacking["lpips_alex"]
    assert "inception_weights=FILE" in lacking["rfid"]
    assert lacking["retrieval"] == "retrieval needs captions, but no picture has one"
    assert (evaluation / "skipped.txt").read_text().startswith("bee/bad.png: ")
    for name in ("first", "worst", "best"):
        assert Image.open(evaluation / f"{name}.png").size[0] > 4 * 32
    told = capsys.readouterr().out
    assert "not computed: retrieval needs captions" in told
    assert shown("psnr", found["tower/psnr"]) in told


def test_batches_do_not_change_the_numbers(run: Path, scenes: Path) -> None:
    one, several = (evaluate_tower(config(run, scenes, batch_size=size, features=None)) for size in (12, 5))
    for name, value in one.items():
        if not name.endswith("per_second"):
            assert several[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_a_saved_tower_without_texts_is_measured_in_pixels(
    tower: VisionTower, scenes: Path, tmp_path: Path
) -> None:
    tower.save_pretrained(tmp_path / "saved")
    found = evaluate_tower(config(tmp_path / "saved", scenes, features=None))
    images = to_tensor(read_images(scenes / "test", size=IMAGE_SIZE))
    assert found["tower/psnr"] == pytest.approx(
        psnr(images, tower.decode(tower.encode(images))).mean().item(), rel=1e-4
    )
    lacking = json.loads((tmp_path / "saved" / "evaluation" / "not_computed.json").read_text())
    assert "no text encoder in" in lacking["retrieval"]
    assert "no text encoder in" in lacking["hard_negative_accuracy"]
    assert "tower/read_back_accuracy" in found, "the verifier needs no texts"


def test_a_verifier_reads_pictures_of_its_own_size_only(scenes: Path) -> None:
    with pytest.raises(NotComputed, match="reads pictures of 32 pixels, but the tower draws 64"):
        ReadBack(world_of(scenes / "test"), image_size=64)


def test_mistakes_are_told_before_anything_is_computed(run: Path, scenes: Path, tmp_path: Path) -> None:
    for changes, sentence in (
        ({"classes": "nowhere.txt"}, "classes=nowhere.txt: there is no such text file"),
        ({"features": "resnet"}, "features=resnet: expected inception, clip"),
        ({"lpips": "alex", "lpips_weights": "no.pth"}, "lpips_weights=no.pth: there is no such file"),
        ({"data": "nowhere"}, "data=nowhere: there is no such directory"),
        ({"tower_directory": str(tmp_path)}, "no vision tower in"),
    ):
        settings = config(run, scenes)
        for name, value in changes.items():
            setattr(settings, name, value)
        with pytest.raises(UserError, match=sentence):
            evaluate_tower(settings)
    assert not (run / "evaluation").exists()
    with pytest.raises(UserError, match="kid_subset_size must be 2 or more, not 1"):
        config(run, scenes, kid_subset_size=1)


def test_grids_show_first_worst_and_best() -> None:
    images = torch.zeros(6, 3, 24, 24)
    errors = torch.tensor([0.3, 0.1, 0.5, 0.2, 0.6, 0.4])
    grids = Grids(2)
    batch = batch_of(6, images=images, reconstructions=images + errors[:, None, None, None])
    grids.update(batch)
    again = {
        name: [round(float(pixels.mean()) / 127.5 - 1, 1) for _, pixels in pairs]
        for name, pairs in grids.sheets().items()
    }
    assert again == {"first": [0.3, 0.1], "worst": [0.6, 0.5], "best": [0.1, 0.2]}
