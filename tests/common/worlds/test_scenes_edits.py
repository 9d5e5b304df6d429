"""Edits and stories of the scenes world: instructions, what they make, and how a picture is judged."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from vilau_common.data.worlds.scene import Scene, SceneObject
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.drawing import Placement, draw
from vilau_common.data.worlds.scenes.edits import (
    EDIT_KINDS,
    Edit,
    EditJudgement,
    apply_instruction,
    judge_edit,
    sample_edit,
)
from vilau_common.data.worlds.scenes.splits import split_of
from vilau_common.data.worlds.scenes.stories import scenes_told
from vilau_common.data.worlds.scenes.world import ScenesWorld

CIRCLE = SceneObject("circle", "red", "small", "left")
SQUARE = SceneObject("square", "blue", "large", "top")
OTHER_SQUARE = SceneObject("square", "green", "large", "bottom")
SCENE = Scene((CIRCLE, SQUARE, OTHER_SQUARE))


@pytest.mark.parametrize("split", ["train", "test", "test_held_out"])
def test_true_edits_are_read_right_and_the_source_is_not(scenes_world: ScenesWorld, split: str) -> None:
    held_out = scenes_world.config.pairs()
    kinds = Counter[str]()
    for index in range(60):
        edit = sample_edit(random.Random(index), split, ScenesConfig(), held_out)
        pictures = draw(
            [edit.source, edit.target],
            [[Placement()] * len(scene.objects) for scene in (edit.source, edit.target)],
            scenes_world.image_size,
        )
        before, after = scenes_world.read(pictures)
        assert judge_edit(edit, after) == EditJudgement(changed=True, kept=True)
        assert judge_edit(edit, before) == EditJudgement(changed=False, kept=True)
        told = apply_instruction(before, edit.instruction)
        assert told is not None
        assert told.description() == edit.target.description()
        assert Edit.from_json(edit.to_json()) == edit
        splits = {split_of(edit.source, held_out), split_of(edit.target, held_out)}
        assert split in splits
        assert split != "train" or splits == {"train"}
        assert split != "test" or "test_held_out" not in splits
        kinds[edit.kind] += 1
    assert set(kinds) == set(EDIT_KINDS)


@pytest.mark.parametrize(
    ("instruction", "target"),
    [
        ("make the circle cyan", (replace(CIRCLE, colour="cyan"), SQUARE, OTHER_SQUARE)),
        ("remove the blue square", (CIRCLE, OTHER_SQUARE)),
        ("move the circle to the top right", (replace(CIRCLE, place="top right"), SQUARE, OTHER_SQUARE)),
        ("remove the square", None),  # there are two
        ("remove it", None),  # so there are of it
        ("remove the triangle", None),
        ("move the circle to the top", None),  # where the square is
        ("make the circle large", None),
        ("please remove the circle", None),
    ],
)
def test_an_instruction_makes_one_scene_or_none(
    instruction: str, target: tuple[SceneObject, ...] | None
) -> None:
    assert apply_instruction(SCENE, instruction) == (None if target is None else Scene(target))


def test_it_is_the_only_object() -> None:
    assert apply_instruction(Scene((CIRCLE,)), "make it blue") == Scene((replace(CIRCLE, colour="blue"),))


@pytest.mark.parametrize(
    ("reading", "judgement"),
    [
        ((replace(CIRCLE, colour="cyan"), SQUARE, OTHER_SQUARE), EditJudgement(changed=True, kept=True)),
        ((CIRCLE, SQUARE, OTHER_SQUARE), EditJudgement(changed=False, kept=True)),
        (
            (replace(CIRCLE, colour="cyan"), replace(SQUARE, size="small"), OTHER_SQUARE),
            EditJudgement(changed=True, kept=False),
        ),
        ((replace(CIRCLE, colour="cyan"), SQUARE), EditJudgement(changed=True, kept=False)),
        (
            (replace(CIRCLE, colour="cyan"), SQUARE, OTHER_SQUARE, replace(CIRCLE, place="right")),
            EditJudgement(changed=True, kept=False),
        ),
        ((replace(CIRCLE, colour="cyan", size="large"), SQUARE), EditJudgement(changed=False, kept=False)),
    ],
)
def test_what_should_stay_is_judged_apart_from_what_should_change(
    reading: tuple[SceneObject, ...], judgement: EditJudgement
) -> None:
    target = Scene((replace(CIRCLE, colour="cyan"), SQUARE, OTHER_SQUARE))
    edit = Edit("recolour", "make the circle cyan", 0, SCENE, target)
    assert judge_edit(edit, Scene(reading)) == judgement
    assert judge_edit(edit, Scene(reading[::-1])) == judgement


def test_what_is_moved_must_leave_its_place() -> None:
    moved = replace(CIRCLE, place="right")
    edit = Edit(
        "move",
        "move the circle to the right",
        0,
        Scene((CIRCLE, SQUARE)),
        Scene((moved, SQUARE)),
    )
    assert judge_edit(edit, Scene((moved, SQUARE))).right
    assert judge_edit(edit, Scene((CIRCLE, moved, SQUARE))) == EditJudgement(changed=False, kept=True)


def test_a_story_is_followed_up_to_the_first_text_that_tells_nothing() -> None:
    texts = [
        "a small red circle at the left and a large blue square at the top",
        "remove the square",
        "make it cyan",
    ]
    first, second, third = scenes_told(texts)
    assert first is not None and set(first.objects) == {CIRCLE, SQUARE}
    assert second == Scene((CIRCLE,))
    assert third == Scene((replace(CIRCLE, colour="cyan"),))
    assert scenes_told([texts[0], "remove the cross", "remove the square"])[1:] == [None, None]
