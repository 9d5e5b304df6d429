"""Stories: a scene is told and shown, then an edit of it, and another: text and pictures alternate."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from vilau_common.data.worlds.scene import Scene
from vilau_common.data.worlds.scenes.captions import full_caption
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.edits import EDIT_KINDS, Edit, apply_instruction, edit_of
from vilau_common.data.worlds.scenes.grammar import parse_full
from vilau_common.data.worlds.scenes.splits import sample_scene, split_of_all

CHANGES = 2


@dataclass(frozen=True)
class Story:
    """texts[i] stands before picture i: a full caption, then instructions."""

    texts: tuple[str, ...]
    scenes: tuple[Scene, ...]
    edits: tuple[Edit, ...]


def sample_story(
    rng: random.Random, split: str, config: ScenesConfig, held_out: frozenset[tuple[str, str]]
) -> Story:
    """A random story of the split: all pictures are training scenes, or it belongs to a test split."""
    while True:
        scenes = [sample_scene(rng, split, config, held_out)]
        edits: list[Edit] = []
        while len(edits) < CHANGES:
            edit = edit_of(rng, scenes[-1], rng.choice(EDIT_KINDS))
            if edit is None:
                break
            edits.append(edit)
            scenes.append(edit.target)
        if len(edits) == CHANGES and split_of_all(scenes, held_out) == split:
            texts = [full_caption(scenes[0], rng, in_reading_order=True)]
            return Story((*texts, *(edit.instruction for edit in edits)), tuple(scenes), tuple(edits))


def scenes_told(texts: Sequence[str]) -> list[Scene | None]:
    """What the picture after each text must show; None from the first text on that does not tell it."""
    scenes: list[Scene | None] = []
    for text in texts:
        if not scenes:
            scenes.append(parse_full(text))
        else:
            before = scenes[-1]
            scenes.append(None if before is None else apply_instruction(before, text))
    return scenes
