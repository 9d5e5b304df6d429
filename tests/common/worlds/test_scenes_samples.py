"""The splits of the scenes world: what they hold, what they keep apart, that they can be had again."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from vilau_common.data.worlds.registry import build_world
from vilau_common.data.worlds.scene import Scene, WorldSample
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.drawing import Placement, draw
from vilau_common.data.worlds.scenes.words import COLOURS, PLACES, SHAPES
from vilau_common.data.worlds.scenes.world import ScenesWorld
from vilau_common.errors import UserError

Samples = dict[str, list[WorldSample]]


def descriptions(samples: list[WorldSample]) -> set[frozenset[object]]:
    return {frozenset(sample.scene.objects) for sample in samples if sample.scene is not None}


def test_splits_share_no_scene(scenes_samples: Samples) -> None:
    train, test, held_out = (
        descriptions(scenes_samples[split]) for split in ("train", "test", "test_held_out")
    )
    assert not train & test
    assert not (train | test) & held_out


def test_splits_share_no_scene_whatever_the_seeds(scenes_samples: Samples) -> None:
    other = ScenesWorld(ScenesConfig(train_count=1500, seed=7))
    assert not descriptions(scenes_samples["test"]) & descriptions(list(other.splits()["train"]()))


def test_held_out_combinations_stay_out_of_pictures_and_words(
    scenes_world: ScenesWorld, scenes_samples: Samples
) -> None:
    held_out = scenes_world.config.pairs()
    phrases = [f"{colour} {shape}" for colour, shape in held_out]
    for sample in scenes_samples["train"] + scenes_samples["test"]:
        assert sample.scene is not None
        assert not any((item.colour, item.shape) in held_out for item in sample.scene.objects)
        words = json.dumps(sample.to_json())
        assert not any(phrase in words for phrase in phrases)
    for sample in scenes_samples["test_held_out"]:
        assert sample.scene is not None
        assert any((item.colour, item.shape) in held_out for item in sample.scene.objects)


def test_sizes_are_told_without_drawing(scenes_world: ScenesWorld, scenes_samples: Samples) -> None:
    assert all(scenes_world.size_of(split) == len(samples) for split, samples in scenes_samples.items())


def test_numbers_of_objects_are_equally_frequent(scenes_samples: Samples) -> None:
    counts = Counter(len(sample.scene.objects) for sample in scenes_samples["train"] if sample.scene)
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 0.28 * counts.total()


def test_samples_repeat_exactly_and_do_not_depend_on_the_count(scenes_samples: Samples) -> None:
    again = ScenesWorld(ScenesConfig(train_count=5)).splits()["train"]()
    for sample, expected in zip(again, scenes_samples["train"], strict=False):
        assert sample.key == expected.key
        assert np.array_equal(sample.image, expected.image)
        assert sample.to_json() == expected.to_json()


def test_another_seed_gives_other_samples(scenes_samples: Samples) -> None:
    other = ScenesWorld(ScenesConfig(seed=1)).splits()["train"]()
    pairs = zip(islice(other, 20), scenes_samples["train"], strict=False)
    assert sum(sample.scene == expected.scene for sample, expected in pairs) < 5


def test_scene_survives_json(scenes_samples: Samples) -> None:
    for sample in scenes_samples["test"][:20]:
        value = json.loads(json.dumps(sample.to_json()))
        assert Scene.from_json(value["scene"]) == sample.scene


@pytest.mark.parametrize("size", [24, 32, 48])
@pytest.mark.parametrize("shape", SHAPES)
def test_largest_object_stays_in_its_place_whatever_the_jitter(size: int, shape: str) -> None:
    """Light outside the place is at most that of an edge pixel's rounding, here 3 % of the contrast."""
    world = ScenesWorld(ScenesConfig(image_size=size))
    shift, scale = world.config.position_jitter, 1 + world.config.size_jitter
    scenes, placements = [], []
    for x in (-shift, shift):
        for y in (-shift, shift):
            scenes.append(Scene.from_json({"objects": [_large(shape)]}))
            placements.append([Placement(x, y, scale)])
    images = draw(scenes, placements, size).astype(float)
    first, last = int(np.floor(size / 3)), int(np.ceil(size * 2 / 3))
    images[:, first:last, first:last] = images[:, :1, :1]
    assert np.abs(images - images[:, :1, :1]).max() <= 0.03 * 255


def _large(shape: str) -> dict[str, str]:
    return {"shape": shape, "colour": "blue", "size": "large", "place": "centre"}


def test_every_word_is_drawn(scenes_samples: Samples) -> None:
    objects = [item for sample in scenes_samples["train"] if sample.scene for item in sample.scene.objects]
    assert {item.shape for item in objects} == set(SHAPES)
    assert {item.colour for item in objects} == set(COLOURS)
    assert {item.place for item in objects} == set(PLACES)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"held_out_pairs": ["pink triangle"]}, "pink triangle"),
        ({"held_out_pairs": ["triangle purple"]}, "triangle purple"),
        ({"held_out_pairs": []}, "held_out_count"),
        ({"image_size": 8}, "image_size"),
        ({"position_jitter": 0.4}, "position_jitter"),
        ({"train_count": -1}, "train_count"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, object], named: str) -> None:
    config = ScenesConfig()
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(UserError, match=named):
        build_world(config)
