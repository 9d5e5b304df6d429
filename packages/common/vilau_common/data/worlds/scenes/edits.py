"""Edits of scenes: one object is recoloured, removed or moved, as an instruction says; all else stays.

instruction = "make " reference " " colour | "remove " reference | "move " reference " to the " place
reference   = "it" (the only object) | "the " shape (the only one of that shape) | "the " colour " " shape
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from vilau_common.data.worlds.scene import Scene, SceneObject
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.splits import sample_scene, split_of_all
from vilau_common.data.worlds.scenes.words import COLOURS, PLACES, SHAPES

RECOLOUR, REMOVE, MOVE = EDIT_KINDS = ("recolour", "remove", "move")
_IT = "it"
_REFERENCE = rf"(?P<it>{_IT})|the (?:(?P<colour>{'|'.join(COLOURS)}) )?(?P<shape>{'|'.join(SHAPES)})"
_PATTERNS = {
    RECOLOUR: re.compile(rf"make (?:{_REFERENCE}) (?P<value>{'|'.join(COLOURS)})"),
    REMOVE: re.compile(rf"remove (?:{_REFERENCE})(?P<value>)"),
    MOVE: re.compile(
        rf"move (?:{_REFERENCE}) to the (?P<value>{'|'.join(sorted(PLACES, key=len, reverse=True))})"
    ),
}


@dataclass(frozen=True)
class Edit:
    """A scene, what to change, and the scene changed; objects that stay keep their order."""

    kind: str
    instruction: str
    index: int  # of the source's object that is changed
    source: Scene
    target: Scene

    def to_json(self) -> dict[str, Any]:
        """A plain structure that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Edit:
        """The edit that `to_json` wrote."""
        source, target = Scene.from_json(value["source"]), Scene.from_json(value["target"])
        return cls(value["kind"], value["instruction"], value["index"], source, target)


@dataclass(frozen=True)
class EditJudgement:
    """How far a picture is what the instruction makes of the source."""

    changed: bool  # where something was to change, the picture shows the target
    kept: bool  # everywhere else, too

    @property
    def right(self) -> bool:
        """Both."""
        return self.changed and self.kept


def sample_edit(
    rng: random.Random, split: str, config: ScenesConfig, held_out: frozenset[tuple[str, str]]
) -> Edit:
    """A random edit of the split: both pictures are training scenes, or it belongs to a test split."""
    kind = rng.choice(EDIT_KINDS)
    while True:
        edit = edit_of(rng, sample_scene(rng, split, config, held_out), kind)
        if edit is not None and split_of_all([edit.source, edit.target], held_out) == split:
            return edit


def edit_of(rng: random.Random, scene: Scene, kind: str) -> Edit | None:
    """A random edit of the kind; None where the scene has no object that can be told by its colour and shape."""
    if kind == REMOVE and len(scene.objects) == 1:
        return None  # nothing would be left, which no picture shows
    index = rng.randrange(len(scene.objects))
    item = scene.objects[index]
    references = [text for text in _names(scene, item) if _referred(scene, text) == index]
    if not references:
        return None
    reference = rng.choice(references)
    if kind == RECOLOUR:
        value = rng.choice([colour for colour in COLOURS if colour != item.colour])
        text = f"make {reference} {value}"
    elif kind == MOVE:
        taken = {other.place for other in scene.objects}
        value = rng.choice([place for place in PLACES if place not in taken])
        text = f"move {reference} to the {value}"
    else:
        value, text = "", f"remove {reference}"
    return Edit(kind, text, index, scene, _changed(scene, index, kind, value))


def apply_instruction(scene: Scene, text: str) -> Scene | None:
    """The scene that an instruction makes of this one; None where it is none, or not clear, or not possible."""
    for kind, pattern in _PATTERNS.items():
        match = pattern.fullmatch(text)
        if match is None:
            continue
        index = _find(scene, match)
        if index is None:
            return None
        taken = {other.place for other in scene.objects}
        if kind == MOVE and match["value"] in taken:
            return None
        return _changed(scene, index, kind, match["value"])
    return None


def judge_edit(edit: Edit, reading: Scene) -> EditJudgement:
    """A picture's reading against the edit's target, apart where something was to change and where nothing was."""
    places = {item.place for item in set(edit.source.objects) ^ set(edit.target.objects)}

    def part(scene: Scene, inside: bool) -> Counter[SceneObject]:
        return Counter(item for item in scene.objects if (item.place in places) == inside)

    return EditJudgement(
        changed=part(reading, True) == part(edit.target, True),
        kept=part(reading, False) == part(edit.target, False),
    )


def _names(scene: Scene, item: SceneObject) -> list[str]:
    return [_IT, f"the {item.shape}", f"the {item.colour} {item.shape}"]


def _referred(scene: Scene, reference: str) -> int | None:
    match = re.fullmatch(_REFERENCE, reference)
    return None if match is None else _find(scene, match)


def _find(scene: Scene, match: re.Match[str]) -> int | None:
    """The only object that the reference fits."""
    fitting = [
        index
        for index, item in enumerate(scene.objects)
        if match["it"] or (item.shape == match["shape"] and match["colour"] in (None, item.colour))
    ]
    return fitting[0] if len(fitting) == 1 else None


def _changed(scene: Scene, index: int, kind: str, value: str) -> Scene:
    objects = list(scene.objects)
    if kind == REMOVE:
        del objects[index]
    else:
        name = "colour" if kind == RECOLOUR else "place"
        objects[index] = replace(objects[index], **{name: value})
    return Scene(tuple(objects))
