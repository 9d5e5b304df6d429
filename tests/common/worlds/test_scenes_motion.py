"""Videos of the scenes world: what the verifier reads off true ones, and what it does not let pass."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from vilau_common.data.worlds.scene import Scene, SceneObject
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.drawing import Placement, draw
from vilau_common.data.worlds.scenes.motion import (
    DIRECTIONS,
    FRAMES,
    Motion,
    MotionJudgement,
    judge_motion,
    motion_caption,
    parse_motion,
    partial_motion_caption,
    path,
    sample_motion,
    what_moves,
)
from vilau_common.data.worlds.scenes.splits import split_of
from vilau_common.data.worlds.scenes.world import ScenesWorld

RIGHT = MotionJudgement(object_right=True, direction_right=True, still_right=True)
MOTION = Motion(
    SceneObject("circle", "red", "small", "left"), "right", (SceneObject("square", "blue", "large", "top"),)
)


def frames_of(world: ScenesWorld, scenes: list[Scene]) -> list[Scene]:
    """Readings of drawn pictures of the scenes."""
    images = draw(scenes, [[Placement()] * len(scene.objects) for scene in scenes], world.image_size)
    return world.read(images)


def judged(world: ScenesWorld, motion: Motion, caption: str) -> MotionJudgement:
    prompt = parse_motion(caption)
    assert prompt is not None
    return judge_motion(prompt, frames_of(world, motion.scenes()))


def test_a_path_goes_from_side_to_side() -> None:
    assert path("top right", "down") == ["top right", "right", "bottom right"]
    assert path("right", "left") == ["right", "centre", "left"]
    with pytest.raises(ValueError, match="cannot move left"):
        path("left", "left")


@pytest.mark.parametrize("split", ["train", "test", "test_held_out"])
def test_true_videos_are_read_right(scenes_world: ScenesWorld, split: str) -> None:
    held_out = scenes_world.config.pairs()
    seen = set()
    for index in range(60):
        motion = sample_motion(random.Random(index), split, ScenesConfig(), held_out)
        for caption in (motion_caption(motion), partial_motion_caption(motion)):
            assert judged(scenes_world, motion, caption) == RIGHT, caption
        seen.add((motion.direction, len(motion.still)))
        splits = {split_of(scene, held_out) for scene in motion.scenes()}
        assert split in splits
        assert split != "train" or splits == {"train"}
        assert split != "test" or "test_held_out" not in splits
    assert seen == {(direction, count) for direction in DIRECTIONS for count in (0, 1)}


def test_a_wrong_direction_object_or_still_object_is_told(scenes_world: ScenesWorld) -> None:
    caption = motion_caption(MOTION)
    assert judged(scenes_world, MOTION, caption) == RIGHT
    # The same places the other way round.
    back = Motion(replace(MOTION.mover, place="right"), "left", MOTION.still)
    assert judged(scenes_world, back, partial_motion_caption(MOTION)) == replace(RIGHT, direction_right=False)
    other = Motion(replace(MOTION.mover, colour="green"), "right", MOTION.still)
    assert judged(scenes_world, other, caption) == replace(RIGHT, object_right=False)
    lane = Motion(replace(MOTION.mover, place="bottom left"), "right", MOTION.still)
    assert judged(scenes_world, lane, caption) == replace(RIGHT, object_right=False)
    assert judged(scenes_world, lane, partial_motion_caption(MOTION)) == RIGHT
    alone = Motion(MOTION.mover, "right")
    assert judged(scenes_world, alone, caption) == replace(RIGHT, still_right=False)
    assert judged(scenes_world, MOTION, motion_caption(alone)) == replace(RIGHT, still_right=False)


def test_what_does_not_move_all_the_way_has_no_direction(scenes_world: ScenesWorld) -> None:
    prompt = parse_motion(motion_caption(MOTION))
    assert prompt is not None
    first, second, _ = frames_of(scenes_world, MOTION.scenes())
    assert not judge_motion(prompt, [first, second, second]).direction_right
    assert not judge_motion(prompt, [first] * FRAMES).direction_right
    vanished = [first, second, Scene(MOTION.still)]
    judgement = judge_motion(prompt, vanished)
    assert not judgement.direction_right
    assert not judgement.object_right


def test_an_object_that_changes_its_colour_on_the_way_is_wrong(scenes_world: ScenesWorld) -> None:
    scenes = MOTION.scenes()
    mover, *still = scenes[-1].objects
    scenes[-1] = Scene((replace(mover, colour="green"), *still))
    prompt = parse_motion(motion_caption(MOTION))
    assert prompt is not None
    judgement = judge_motion(prompt, frames_of(scenes_world, scenes))
    assert judgement == replace(RIGHT, object_right=False)


def test_captions_say_what_they_are_read_as() -> None:
    assert what_moves(MOTION) == "a red circle moves right"
    prompt = parse_motion(motion_caption(MOTION))
    assert prompt is not None
    assert (prompt.mover.place, prompt.direction, prompt.still[0].size) == ("left", "right", "large")
    for text in ("a red circle", "a red circle moves", "a red circle moves on", "two circles moves left", ""):
        assert parse_motion(text) is None, text
    assert Motion.from_json(MOTION.to_json()) == MOTION


def test_frames_differ_where_the_object_moves_alone(scenes_world: ScenesWorld) -> None:
    world = ScenesWorld(ScenesConfig(video_count=20))
    _, start = world.documents()["videos/train"]
    for document in start():
        motion = Motion.from_json(document.record["motion"])
        changing = np.ptp(document.images.astype(int), axis=0).max(axis=-1) > 0
        side = world.image_size // 3
        moved = {str(scene.objects[0].place) for scene in motion.scenes()}
        for still in motion.still:
            row, column = divmod(scenes_places.index(str(still.place)), 3)
            middle = changing[
                row * side + 4 : row * side + side - 3, column * side + 4 : column * side + side - 3
            ]
            assert still.place not in moved
            assert not middle.any()


scenes_places = (
    *("top left", "top", "top right", "left", "centre", "right"),
    *("bottom left", "bottom", "bottom right"),
)
