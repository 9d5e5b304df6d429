"""Which scenes belong to which split, and how they are sampled.

A split is a property of the scene's description alone: a stable hash sends one description in ten to the test
split. Train and test therefore share no description, whatever the seed and the counts.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable

from vilau_common.data.worlds.scene import Scene, SceneObject
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.drawing import Placement
from vilau_common.data.worlds.scenes.words import COLOURS, MAX_OBJECTS, PLACES, SHAPES, SIZES

TRAIN, TEST, HELD_OUT = "train", "test", "test_held_out"
TEST_ONE_IN = 10


def split_of(scene: Scene, held_out: frozenset[tuple[str, str]]) -> str:
    """The one split in which this scene may occur."""
    if any((item.colour, item.shape) in held_out for item in scene.objects):
        return HELD_OUT
    text = ";".join(f"{o.place},{o.size},{o.colour},{o.shape}" for o in scene.description())
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return TEST if int.from_bytes(digest, "big") % TEST_ONE_IN == 0 else TRAIN


def split_of_all(scenes: Iterable[Scene], held_out: frozenset[tuple[str, str]]) -> str:
    """The one split in which a document of these pictures may occur: a training one shows training scenes alone."""
    splits = {split_of(scene, held_out) for scene in scenes}
    if HELD_OUT in splits:
        return HELD_OUT
    return TRAIN if splits == {TRAIN} else TEST


def sample_scene(
    rng: random.Random, split: str, config: ScenesConfig, held_out: frozenset[tuple[str, str]]
) -> Scene:
    """A random scene of the split; the number of objects is uniform over 1..3."""
    return sample_scene_of(rng, rng.randint(1, MAX_OBJECTS), split, config, held_out)


def sample_scene_of(
    rng: random.Random, count: int, split: str, config: ScenesConfig, held_out: frozenset[tuple[str, str]]
) -> Scene:
    """A random scene of the split with so many objects."""
    while True:  # the number of objects is drawn once, so rejection does not skew it
        scene = _any_scene(rng, count, config.same_shape_share)
        if split == HELD_OUT:
            scene = _with_held_out(rng, scene, held_out)
        if split_of(scene, held_out) == split:
            return scene


def sample_placement(rng: random.Random, config: ScenesConfig) -> Placement:
    """A random jitter within the configured bounds."""
    return Placement(
        shift_x=rng.uniform(-config.position_jitter, config.position_jitter),
        shift_y=rng.uniform(-config.position_jitter, config.position_jitter),
        scale=1 + rng.uniform(-config.size_jitter, config.size_jitter),
        brightness=1 + rng.uniform(-config.brightness_jitter, config.brightness_jitter),
    )


def _any_scene(rng: random.Random, count: int, same_shape_share: float) -> Scene:
    places = rng.sample(PLACES, count)
    common = rng.choice(SHAPES) if count > 1 and rng.random() < same_shape_share else None
    return Scene(tuple(random_object(rng, place, common) for place in places))


def random_object(rng: random.Random, place: str, shape: str | None = None) -> SceneObject:
    """An object at the place, of any shape unless one is given; held-out combinations included."""
    return SceneObject(
        shape=shape or rng.choice(SHAPES), colour=rng.choice(COLOURS), size=rng.choice(SIZES), place=place
    )


def _with_held_out(rng: random.Random, scene: Scene, held_out: frozenset[tuple[str, str]]) -> Scene:
    """The scene with one of its objects replaced by a held-out combination of the same size and place."""
    colour, shape = rng.choice(sorted(held_out))
    first, *rest = scene.objects
    objects = [SceneObject(shape, colour, first.size, first.place), *rest]
    rng.shuffle(objects)
    return Scene(tuple(objects))
