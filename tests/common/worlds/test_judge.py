"""The judge of drawn pictures: one-to-one matching, relations, counting, surplus objects."""

from __future__ import annotations

import pytest

from vilau_common.data.worlds.scene import UNREADABLE, DrawingPrompt, Scene, SceneObject
from vilau_common.data.worlds.scenes.grammar import parse
from vilau_common.data.worlds.scenes.world import ScenesWorld

RED_CIRCLE = SceneObject("circle", "red", "small", "left")
BLUE_SQUARE = SceneObject("square", "blue", "large", "right")
GREEN_CIRCLE = SceneObject("circle", "green", "large", "top")
TORN = SceneObject(UNREADABLE, UNREADABLE, None, "bottom")


def prompt(text: str, kind: str) -> DrawingPrompt:
    required = parse(text)
    assert required is not None
    return DrawingPrompt(text, kind, required, exact=kind == "scene")


@pytest.mark.parametrize(
    ("text", "kind", "objects", "right", "extra", "scene_right"),
    [
        ("a red circle", "colours", (RED_CIRCLE,), (True,), 0, True),
        ("a red circle", "colours", (RED_CIRCLE, BLUE_SQUARE), (True,), 1, False),
        ("a red circle", "colours", (RED_CIRCLE, TORN), (True,), 1, False),
        ("a red circle", "colours", (), (False,), 0, False),
        ("a red square", "colours", (RED_CIRCLE,), (False,), 0, False),
        ("a red object", "colours", (TORN,), (False,), 0, False),
        # Attributes of two objects do not add up to one right object.
        ("a blue circle and a red square", "binding", (RED_CIRCLE, BLUE_SQUARE), (False, False), 0, False),
        ("a blue square and a red circle", "binding", (RED_CIRCLE, BLUE_SQUARE), (True, True), 0, True),
        # "a circle" must leave the red one to "a red circle", whatever the order.
        ("a circle and a red circle", "binding", (RED_CIRCLE, GREEN_CIRCLE), (True, True), 0, True),
        ("two circles", "counting", (RED_CIRCLE, GREEN_CIRCLE), (True, True), 0, True),
        ("two circles", "counting", (RED_CIRCLE,), (True, False), 0, False),
        ("two circles", "counting", (RED_CIRCLE, GREEN_CIRCLE, BLUE_SQUARE), (True, False), 1, False),
        ("a red circle left of a blue square", "position", (RED_CIRCLE, BLUE_SQUARE), (True, True), 0, True),
        (
            "a red circle right of a blue square",
            "position",
            (RED_CIRCLE, BLUE_SQUARE),
            (False, True),
            0,
            False,
        ),
        ("a red circle left of a blue square", "position", (RED_CIRCLE, TORN), (False, False), 0, False),
        ("a red circle at the left", "position", (RED_CIRCLE,), (True,), 0, True),
        ("a red circle at the top left", "position", (RED_CIRCLE,), (False,), 0, False),
    ],
)
def test_judgement(
    scenes_world: ScenesWorld,
    text: str,
    kind: str,
    objects: tuple[SceneObject, ...],
    right: tuple[bool, ...],
    extra: int,
    scene_right: bool,
) -> None:
    judgement = scenes_world.judge(prompt(text, kind), Scene(objects))
    assert (judgement.right, judgement.extra, judgement.scene_right) == (right, extra, scene_right)


def test_same_ignores_order_and_counts_duplicates(scenes_world: ScenesWorld) -> None:
    assert scenes_world.same(Scene((RED_CIRCLE, BLUE_SQUARE)), Scene((BLUE_SQUARE, RED_CIRCLE)))
    assert not scenes_world.same(Scene((RED_CIRCLE, RED_CIRCLE)), Scene((RED_CIRCLE,)))
