"""The tower alone, by transformers' Auto classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel

import vilau_vision_tower.auto
from vilau_common.errors import UserError
from vilau_common.images import to_tensor
from vilau_vision_tower.image_processor import VisionTowerImageProcessor
from vilau_vision_tower.tower import VisionTower

AUTO = vilau_vision_tower.auto


def test_features_for_other_models(tower: VisionTower, tmp_path: Path) -> None:
    tower.eval()
    tower.save_pretrained(tmp_path)
    VisionTowerImageProcessor(tower.image_size).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "vilau_vision_tower"
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is VisionTower
    size = tower.image_size
    pictures = np.random.default_rng(0).integers(256, size=(2, size, size, 3), dtype=np.uint8)
    inputs = AutoImageProcessor.from_pretrained(tmp_path)([Image.fromarray(pictures[0]), pictures[1]])
    assert torch.equal(inputs["pixel_values"], to_tensor(pictures))
    with torch.no_grad():
        assert torch.equal(again(**inputs).z_q, tower(to_tensor(pictures)).z_q)


def test_how_pictures_become_squares(tmp_path: Path) -> None:
    """As `image_fit` says; upright, and white where they are transparent."""
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, :4] = 255
    assert VisionTowerImageProcessor(8)(wide)["pixel_values"].unique().numel() > 1
    padded = VisionTowerImageProcessor(8, "pad")(wide)["pixel_values"]
    assert torch.allclose(padded[0, :, 0], torch.tensor(127 / 127.5 - 1))
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (VisionTowerImageProcessor(4)(clear)["pixel_values"] == 1).all()
    assert clear.mode == "RGBA"
    clear.save(tmp_path / "clear.png")
    assert (VisionTowerImageProcessor(4)(tmp_path / "clear.png")["pixel_values"] == 1).all()


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="image_fit is 'stretch'; it is one of crop, resize, pad"):
        VisionTowerImageProcessor(8, "stretch")
    with pytest.raises(UserError, match=r"float32 \[1, 3, 4, 4\] is none"):
        VisionTowerImageProcessor(8)(np.zeros((1, 3, 4, 4), np.float32))
