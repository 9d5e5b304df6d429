"""What is measured of a tower, on pictures and models whose numbers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast, SiglipModel

from vilau_common.data.split import Split, load_split
from vilau_common.data.worlds.base import World
from vilau_common.data.worlds.registry import world_of
from vilau_common.images import to_tensor
from vilau_vision_tower.clip import TextEncoder
from vilau_vision_tower.evaluation import world as world_module
from vilau_vision_tower.evaluation.world import evaluate_on_world, hard_negative_accuracy, scenes_right
from vilau_vision_tower.losses import psnr
from vilau_vision_tower.tower import VisionTower


@pytest.fixture
def world(scenes: Path) -> World:
    return world_of(scenes / "test")


@pytest.fixture
def split(scenes: Path) -> Split:
    return load_split(scenes / "test")


def texts_apart() -> Callable[[list[str]], Tensor]:
    """Every text gets a unit vector of its own."""
    known: dict[str, Tensor] = {}

    def embed(captions: list[str]) -> Tensor:
        for caption in captions:
            known.setdefault(caption, F.normalize(torch.randn(64), dim=0))
        return torch.stack([known[caption] for caption in captions])

    return embed


@pytest.mark.parametrize("batch", [5, 250])
def test_hard_negatives_are_told_apart(
    world: World, split: Split, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world_module, "BATCH", batch)
    embed = texts_apart()
    embeddings = embed([captions[0] for captions in split.captions])
    assert hard_negative_accuracy(embeddings, embed, world, split, split.known()) == 1.0
    for index in (1, 7, 8):
        embeddings[index] = embed([world.hard_negatives(split.scenes[index], split.captions[index][0])[-1]])[
            0
        ]
    assert hard_negative_accuracy(embeddings, embed, world, split, split.known()) == 0.75  # 9 of 12
    some = np.array([0, 7])
    assert hard_negative_accuracy(embeddings, embed, world, split, some) == 0.5


def test_a_text_encoder_that_tells_nothing_apart_is_never_right(world: World, split: Split) -> None:
    vectors = F.normalize(torch.ones(len(split.images), 64), dim=-1)
    everything_equal = hard_negative_accuracy(
        vectors, lambda captions: vectors[:1].expand(len(captions), -1), world, split, split.known()
    )
    assert everything_equal == 0.0


def test_pictures_are_read_back_against_their_own_scene(world: World, split: Split) -> None:
    indices = split.known()
    assert scenes_right(world, split.images, split, indices).all()
    assert not scenes_right(world, np.roll(split.images, 1, axis=0), split, indices).any()
    assert scenes_right(world, split.images[[3, 5]], split, np.array([3, 5])).all()


def test_a_tower_is_measured(
    world: World, split: Split, tower: VisionTower, clip: SiglipModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    images = to_tensor(split.images)
    result = evaluate_on_world(tower, TextEncoder(clip.text_model, tokenizer), world, split, 4)
    codes = tower.encode(images)
    assert torch.equal(result.codes, codes)
    assert result.reconstructions.shape == split.images.shape
    expected = psnr(images, tower.decode(codes)).mean().item()
    assert result.metrics["psnr"] == pytest.approx(expected, rel=1e-4)
    for depth in range(tower.depth):
        used = len(set(codes[..., depth].flatten().tolist()))
        assert result.metrics[f"codebook_usage_d{depth}"] == used / tower.codebook_size
    assert result.metrics["read_back_accuracy"] == result.read_back_right.mean() == 0.0, "it is not trained"
    assert 0 <= result.metrics["hard_negative_accuracy"] <= 1


def test_perfect_reconstructions_are_read_back(
    world: World,
    split: Split,
    tower: VisionTower,
    clip: SiglipModel,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tower, "decode", lambda codes: to_tensor(split.images))
    result = evaluate_on_world(tower, TextEncoder(clip.text_model, tokenizer), world, split, 4)
    assert result.metrics["read_back_accuracy"] == 1.0
    assert result.read_back_right.all()
    assert np.array_equal(result.reconstructions, split.images)
