"""Documents of several pictures of the scenes world: videos, edits, shots and stories, as prepared data hold them.

A kind is a data set of its own, `<directory>/<kind>/<split>`. Each document depends on seed, kind, split and its number
alone. Objects keep their jitter through all pictures of a video, an edit or a story: only what is told changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from vilau_common.data.conversation import ASSISTANT, IMAGE, USER, VIDEO
from vilau_common.data.fields import CAPTIONS, CONVERSATION, INSTRUCTION, INTERLEAVED, PICTURES, VIDEOS
from vilau_common.data.worlds.scene import Scene, WorldDocument
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.drawing import Placement, draw
from vilau_common.data.worlds.scenes.edits import REMOVE, Edit, sample_edit
from vilau_common.data.worlds.scenes.motion import (
    WHAT_MOVES,
    motion_caption,
    partial_motion_caption,
    sample_motion,
    what_moves,
)
from vilau_common.data.worlds.scenes.shots import WHAT_CALLED, sample_shots
from vilau_common.data.worlds.scenes.splits import HELD_OUT, TEST, TRAIN, sample_placement
from vilau_common.data.worlds.scenes.stories import sample_story

VIDEO_KIND, EDIT_KIND, SHOTS_KIND, STORY_KIND = "videos", "edits", "shots", "stories"
MOTION, EDIT, RULE = "motion", "edit", "rule"  # what a verifier needs to judge, in the record

Pairs = frozenset[tuple[str, str]]
Drawn = tuple[Sequence[Scene], Sequence[Sequence[Placement]], dict[str, Any]]
"""The scenes of a document's pictures, how their objects are placed, and its record."""


def documents(
    config: ScenesConfig, held_out: Pairs
) -> dict[str, tuple[int, Callable[[], Iterator[WorldDocument]]]]:
    """ "<kind>/<split>" -> the number of documents and a function that starts a fresh pass over them."""
    kinds: dict[str, tuple[int, Callable[[random.Random, str, ScenesConfig, Pairs], Drawn]]] = {
        VIDEO_KIND: (config.video_count, _video),
        EDIT_KIND: (config.edit_count, _edit),
        SHOTS_KIND: (config.shots_count, _shots),
        STORY_KIND: (config.story_count, _story),
    }
    result: dict[str, tuple[int, Callable[[], Iterator[WorldDocument]]]] = {}
    for kind, (count, sample) in kinds.items():
        if not count:
            continue
        sizes = {TRAIN: count, TEST: config.document_test_count}
        if config.held_out_count:
            sizes[HELD_OUT] = config.document_test_count
        for split, size in sizes.items():
            if size:
                name = f"{kind}/{split}"
                result[name] = (size, partial(_samples, name, split, size, sample, config, held_out))
    return result


def _samples(
    name: str,
    split: str,
    count: int,
    sample: Callable[[random.Random, str, ScenesConfig, Pairs], Drawn],
    config: ScenesConfig,
    held_out: Pairs,
) -> Iterator[WorldDocument]:
    for index in range(count):
        rng = random.Random(f"scenes/{config.seed}/{name}/{index}")
        scenes, placements, record = sample(rng, split, config, held_out)
        record[PICTURES] = len(scenes)
        yield WorldDocument(f"{index:06d}", draw(scenes, placements, config.image_size), record)


def _video(rng: random.Random, split: str, config: ScenesConfig, held_out: Pairs) -> Drawn:
    motion = sample_motion(rng, split, config, held_out)
    scenes = motion.scenes()
    placed = _placed(rng, scenes[0], config)
    record = {
        CAPTIONS: [motion_caption(motion), partial_motion_caption(motion)],
        CONVERSATION: _turns([(VIDEO + WHAT_MOVES, what_moves(motion))]),
        VIDEOS: [len(scenes)],
        MOTION: motion.to_json(),
    }
    return scenes, [placed] * len(scenes), record


def _edit(rng: random.Random, split: str, config: ScenesConfig, held_out: Pairs) -> Drawn:
    edit = sample_edit(rng, split, config, held_out)
    placed = _placed(rng, edit.source, config)
    record = {INSTRUCTION: edit.instruction, EDIT: edit.to_json()}
    return [edit.source, edit.target], [placed, _kept(placed, edit)], record


def _shots(rng: random.Random, split: str, config: ScenesConfig, held_out: Pairs) -> Drawn:
    shots = sample_shots(rng, split, config, held_out)
    turns = [(IMAGE + WHAT_CALLED, label) for label in shots.labels()]
    rule = {"attribute": shots.attribute, "names": shots.names}
    placed = [_placed(rng, scene, config) for scene in shots.scenes]
    return shots.scenes, placed, {CONVERSATION: _turns(turns), RULE: rule}


def _story(rng: random.Random, split: str, config: ScenesConfig, held_out: Pairs) -> Drawn:
    story = sample_story(rng, split, config, held_out)
    placed = [_placed(rng, story.scenes[0], config)]
    for edit in story.edits:
        placed.append(_kept(placed[-1], edit))
    return story.scenes, placed, {INTERLEAVED: "".join(f"{text} {IMAGE} " for text in story.texts).strip()}


def _placed(rng: random.Random, scene: Scene, config: ScenesConfig) -> list[Placement]:
    return [sample_placement(rng, config) for _ in scene.objects]


def _kept(placed: Sequence[Placement], edit: Edit) -> list[Placement]:
    """The placements of the objects that an edit leaves."""
    return [one for index, one in enumerate(placed) if not (edit.kind == REMOVE and index == edit.index)]


def _turns(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Questions and answers as a record has them."""
    return [
        turn
        for question, answer in turns
        for turn in ({"role": USER, "text": question}, {"role": ASSISTANT, "text": answer})
    ]
