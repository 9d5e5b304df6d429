"""In-context documents: pictures with invented names, whose meaning only the document tells.

A rule gives two colours, or two shapes, a name each, drawn anew for every document. The first two pictures show one of
each; so names can be told from two shots on, unless their pictures differ in colour *and* shape, which further shots
make clear. Without shots a name can only be guessed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from vilau_common.data.worlds.scene import Scene
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.splits import HELD_OUT, TEST, random_object, sample_scene_of, split_of
from vilau_common.data.worlds.scenes.words import COLOURS, PLACES, SHAPES

SHOTS = 4
NAMES = ("dax", "wug", "fep", "blick", "toma", "zup")
WHAT_CALLED = "what is it called?"
ATTRIBUTES = {"colour": COLOURS, "shape": SHAPES}


@dataclass(frozen=True)
class Shots:
    """SHOTS labelled pictures and one to label, each of one object."""

    attribute: str  # colour or shape
    names: dict[str, str]  # of two of its values
    scenes: tuple[Scene, ...]

    def labels(self) -> list[str]:
        """The name of each picture."""
        return [self.names[getattr(scene.objects[0], self.attribute)] for scene in self.scenes]


def sample_shots(
    rng: random.Random, split: str, config: ScenesConfig, held_out: frozenset[tuple[str, str]]
) -> Shots:
    """A random document of the split; of the held-out one only the picture to label is held out."""
    attribute = rng.choice(tuple(ATTRIBUTES))
    query = sample_scene_of(rng, 1, split, config, held_out)
    value = getattr(query.objects[0], attribute)
    other = rng.choice([name for name in ATTRIBUTES[attribute] if name != value])
    pair = [value, other]
    rng.shuffle(pair)
    values = [*pair, *(rng.choice(pair) for _ in range(SHOTS - len(pair)))]
    shown = TEST if split == HELD_OUT else split
    scenes = [_scene_with(rng, attribute, name, shown, held_out, query) for name in values]
    words = rng.sample(NAMES, len(pair))
    return Shots(attribute, dict(zip(pair, words, strict=True)), (*scenes, query))


def _scene_with(
    rng: random.Random,
    attribute: str,
    value: str,
    split: str,
    held_out: frozenset[tuple[str, str]],
    other_than: Scene,
) -> Scene:
    """A scene of the split with one object, which has this value."""
    while True:
        item = replace(random_object(rng, rng.choice(PLACES)), **{attribute: value})
        scene = Scene((item,))
        if scene != other_than and split_of(scene, held_out) == split:
            return scene
