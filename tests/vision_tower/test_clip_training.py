"""A tower is trained from a CLIP that is no SigLIP, through the function that the command calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_clips import CAPTIONS, SIZE, save_clip, save_open_clip
from tiny_tower import DECODER

from vilau_common.data.loader import LoaderConfig
from vilau_common.training import TrainingConfig
from vilau_vision_tower.clip import TextEncoder, load_pretrained
from vilau_vision_tower.data import CaptionDataConfig
from vilau_vision_tower.quantizer import QuantizerConfig
from vilau_vision_tower.task import TEXT_ENCODER
from vilau_vision_tower.tower import load_tower
from vilau_vision_tower.train import TowerConfig, TrainTowerConfig, train_tower


@pytest.mark.parametrize("family", ["clip", "tiny-timm-SigLIP"])
def test_a_tower_is_trained_and_used_without_its_clip(scenes: Path, tmp_path: Path, family: str) -> None:
    place = tmp_path / "clip"
    saved = save_clip(place) if family == "clip" else save_open_clip(place, family)
    config = TrainTowerConfig(
        directory=str(tmp_path / "run"),
        data=CaptionDataConfig(
            directory=str(scenes),
            image_size=SIZE,
            hard_negatives=2,
            loader=LoaderConfig(batch_size=4, workers=1, shuffle_buffer=8),
        ),
        tower=TowerConfig(
            clip=saved.config, quantizer=QuantizerConfig(codebook_size=16, depth=2), decoder=DECODER
        ),
        training=TrainingConfig(steps=2, log_every=1),
    )
    train_tower(config)
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(line["train/loss/contrastive"] > 0 for line in metrics if "train/loss/contrastive" in line)
    clip = load_pretrained(saved.config, SIZE)
    tower, texts = (
        load_tower(tmp_path / "run"),
        TextEncoder.from_pretrained(tmp_path / "run/model" / TEXT_ENCODER),
    )
    torch.testing.assert_close(texts.embed(CAPTIONS), clip.text.embed(CAPTIONS))
    changed = [
        name
        for name, value in clip.vision.state_dict().items()
        if not torch.equal(tower.encoder.model.state_dict()[name], value)
    ]
    assert changed, "the image encoder is trained"
    assert tower(torch.zeros(1, 3, SIZE, SIZE)).embedding.shape[-1] == texts.embed(CAPTIONS).shape[-1]
