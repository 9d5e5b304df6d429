"""Captions of scenes: full ones in several wordings, partial ones in GenEval's kinds, hard negatives.

A partial caption leaves attributes open, never objects: whoever draws from it learns no surplus objects.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from vilau_common.data.worlds.scene import Scene, SceneObject
from vilau_common.data.worlds.scenes.grammar import full_phrase, phrase
from vilau_common.data.worlds.scenes.words import (
    NUMBERS,
    RELATIONS,
    plural,
    relation_holds,
    row_and_column,
)

KINDS = ("single", "two", "counting", "colours", "position", "binding")
HARD_KINDS = ("position", "binding")
PREFIX_SHARE = 0.3  # of partial captions that open with "there is" or "a picture of"


def full_caption(scene: Scene, rng: random.Random, in_reading_order: bool = False) -> str:
    """Everything of every object, in one of four wordings; the objects in random order or as one reads.

    The grammar also reads "at the top left a small red circle"; captions do not say it: with both orders, which
    object a place belongs to hangs on how the caption began, which is hard on small models.
    """
    objects = list(scene.objects)
    if in_reading_order:
        objects.sort(key=lambda item: row_and_column(str(item.place)))
    else:
        rng.shuffle(objects)
    phrases = [full_phrase(item) for item in objects]
    wording = rng.randrange(4)
    if wording == 0:
        return ". ".join(f"there is {text}" for text in phrases) + "."
    prefix = ("", "there is ", "a picture of ")[wording - 1]
    return prefix + _listed(phrases)


def captions(scene: Scene, rng: random.Random) -> list[str]:
    """A full caption, and partial ones of each kind that applies.

    Full ones are learned soon, and pictures of three objects have hardly any others; most of drawing's lessons are in
    what partial ones leave open. The last ones to be learned come in two wordings.
    """
    kinds = [kind for kind in (*KINDS, *HARD_KINDS) if kind_applies(kind, scene)]
    partial = [partial_caption(kind, scene, rng) for kind in kinds]
    return list(dict.fromkeys([full_caption(scene, rng), *partial]))


def kind_applies(kind: str, scene: Scene) -> bool:
    """Whether a caption of this kind can tell of every object of the scene."""
    count = len(scene.objects)
    if kind in ("single", "colours"):
        return count == 1
    if kind in ("two", "binding"):
        return count == 2
    if kind == "counting":
        return count > 1 and len({item.shape for item in scene.objects}) == 1
    if kind == "position":
        return count <= 2
    raise ValueError(f"unknown kind {kind!r}; known are {', '.join(KINDS)}")


def partial_caption(kind: str, scene: Scene, rng: random.Random) -> str:
    """A caption of the kind that is true of the scene and mentions every object; see `kind_applies`."""
    prefix = rng.choice(("there is ", "a picture of ")) if rng.random() < PREFIX_SHARE else ""
    objects = list(scene.objects)
    rng.shuffle(objects)
    if kind == "counting" and prefix == "there is ":
        prefix = "there are "
    return prefix + _BODIES[kind](objects, rng)


def _single(objects: list[SceneObject], rng: random.Random) -> str:
    (item,) = objects
    return phrase(item.shape, None, rng.choice((None, item.size)), None)


def _colours(objects: list[SceneObject], rng: random.Random) -> str:
    (item,) = objects
    return phrase(rng.choice((item.shape, item.shape, None)), item.colour, None, None)


def _two(objects: list[SceneObject], rng: random.Random) -> str:
    return _listed([phrase(item.shape, None, None, None) for item in objects])


def _binding(objects: list[SceneObject], rng: random.Random) -> str:
    return _listed([phrase(item.shape, item.colour, None, None) for item in objects])


def _counting(objects: list[SceneObject], rng: random.Random) -> str:
    return f"{NUMBERS[len(objects)]} {plural(objects[0].shape)}"


def _position(objects: list[SceneObject], rng: random.Random) -> str:
    if len(objects) == 1:
        (item,) = objects
        return phrase(item.shape, rng.choice((None, item.colour)), None, item.place)
    first, second = objects
    relation = rng.choice([name for name in RELATIONS if relation_holds(name, first, second)])
    return (
        f"{phrase(first.shape, first.colour, None, None)} {relation} "
        f"{phrase(second.shape, second.colour, None, None)}"
    )


_BODIES: dict[str, Callable[[list[SceneObject], random.Random], str]] = {
    "single": _single,
    "two": _two,
    "counting": _counting,
    "colours": _colours,
    "position": _position,
    "binding": _binding,
}


def _listed(phrases: list[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]
