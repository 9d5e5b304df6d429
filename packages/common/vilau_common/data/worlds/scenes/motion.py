"""Videos of scenes: one object crosses the picture from side to side, one place a frame, while others stay.

caption  = phrase " moves " direction {" and " phrase " stays"}, phrases as in the grammar of pictures.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from vilau_common.data.worlds.scene import Requirement, Scene, SceneObject
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.grammar import full_phrase, parse, phrase
from vilau_common.data.worlds.scenes.splits import sample_scene_of, split_of_all
from vilau_common.data.worlds.scenes.words import GRID, place_of, row_and_column

FRAMES = GRID
STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
DIRECTIONS = tuple(STEPS)
MOVES, STAYS = " moves ", " stays"
WHAT_MOVES = "what moves where?"
MAX_STILL = 1


@dataclass(frozen=True)
class Motion:
    """What a video shows."""

    mover: SceneObject  # at its place in the first frame
    direction: str
    still: tuple[SceneObject, ...] = ()

    def scenes(self) -> list[Scene]:
        """The scene of each frame, the moving object first."""
        return [
            Scene((replace(self.mover, place=place), *self.still))
            for place in path(str(self.mover.place), self.direction)
        ]

    def to_json(self) -> dict[str, Any]:
        """A plain structure that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Motion:
        """The motion that `to_json` wrote."""
        still = tuple(SceneObject(**item) for item in value["still"])
        return cls(SceneObject(**value["mover"]), value["direction"], still)


@dataclass(frozen=True)
class MotionPrompt:
    """What a caption of a video asks for; None leaves an attribute open."""

    mover: Requirement
    direction: str
    still: tuple[Requirement, ...] = ()


@dataclass(frozen=True)
class MotionJudgement:
    """How far a video fulfils its prompt."""

    object_right: bool  # one object changes its place in every frame, and it is the one asked for
    direction_right: bool  # what moves goes one place a frame in the direction asked for
    still_right: bool  # what stays is there, and nothing else


def path(start: str, direction: str) -> list[str]:
    """The places of the frames; `start` is at the side that the direction leads away from.

    Raises ValueError where it is not: the object would leave the picture.
    """
    row, column = row_and_column(start)
    down, across = STEPS[direction]
    cells = [(row + down * step, column + across * step) for step in range(FRAMES)]
    if not all(0 <= number < GRID for cell in cells for number in cell):
        raise ValueError(f"an object at the {start} cannot move {direction} for {FRAMES} frames")
    return [place_of(*cell) for cell in cells]


def sample_motion(
    rng: random.Random, split: str, config: ScenesConfig, held_out: frozenset[tuple[str, str]]
) -> Motion:
    """A random motion of the split; the number of still objects is uniform over 0..MAX_STILL."""
    count = 1 + rng.randint(0, MAX_STILL)
    while True:
        scene = sample_scene_of(rng, count, split, config, held_out)
        direction, lane = rng.choice(DIRECTIONS), rng.randrange(GRID)
        down, across = STEPS[direction]
        start = place_of(_first(down, lane), _first(across, lane))
        # Any of them may be the one that moves: the held-out one, too.
        mover, *still = rng.sample(scene.objects, count)
        if not {item.place for item in still}.isdisjoint(path(start, direction)):
            continue
        motion = Motion(replace(mover, place=start), direction, tuple(still))
        if split_of_all(motion.scenes(), held_out) == split:
            return motion


def motion_caption(motion: Motion) -> str:
    """Everything of every object."""
    parts = [full_phrase(motion.mover) + MOVES + motion.direction]
    return " and ".join([*parts, *(full_phrase(item) + STAYS for item in motion.still)])


def partial_motion_caption(motion: Motion) -> str:
    """Colours and shapes alone; every object is mentioned."""
    parts = [what_moves(motion)]
    return " and ".join([*parts, *(phrase(o.shape, o.colour, None, None) + STAYS for o in motion.still)])


def what_moves(motion: Motion) -> str:
    """The answer to WHAT_MOVES."""
    return phrase(motion.mover.shape, motion.mover.colour, None, None) + MOVES + motion.direction


def parse_motion(text: str) -> MotionPrompt | None:
    """What a caption or an answer says; None where it is none."""
    match = re.fullmatch(rf"(.+){MOVES}({'|'.join(DIRECTIONS)})((?: and .+{STAYS})?)", text)
    if match is None:
        return None
    phrases = [match[1], *(part for part in match[3].removesuffix(STAYS).split(" and ") if part)]
    objects = [parse(part.removesuffix(STAYS)) for part in phrases]
    if any(item is None or len(item) != 1 for item in objects):
        return None
    mover, *still = (item[0] for item in objects if item is not None)
    return MotionPrompt(mover, match[2], tuple(still))


def read_motion(frames: Sequence[Scene]) -> tuple[list[SceneObject | None], Counter[SceneObject]]:
    """What changes its place, one object a frame, and what stays, from the readings of the frames.

    None where a frame has not exactly one object beside those that all frames share.
    """
    still = Counter(frames[0].objects)
    for frame in frames[1:]:
        still &= Counter(frame.objects)
    moving: list[SceneObject | None] = []
    for frame in frames:
        rest = list((Counter(frame.objects) - still).elements())
        moving.append(rest[0] if len(rest) == 1 else None)
    return moving, still


def judge_motion(prompt: MotionPrompt, frames: Sequence[Scene]) -> MotionJudgement:
    """Readings of a video's frames against what was asked for."""
    moving, still = read_motion(frames)
    places = [item.place for item in moving if item is not None and item.place is not None]
    # Its place is that of the first frame.
    anywhere = replace(prompt.mover, place=None)
    object_right = all(item is not None and anywhere.admits(item) for item in moving)
    if prompt.mover.place is not None:
        object_right = object_right and moving[0] is not None and prompt.mover.admits(moving[0])
    return MotionJudgement(
        object_right=object_right,
        direction_right=len(places) == len(frames) == FRAMES and _goes(places, prompt.direction),
        still_right=_shown(prompt.still, list(still.elements())),
    )


def _goes(places: Sequence[str], direction: str) -> bool:
    try:
        return list(places) == path(places[0], direction)
    except ValueError:
        return False


def _shown(required: Sequence[Requirement], there: Sequence[SceneObject]) -> bool:
    # As many as MAX_STILL: the first that fits is the only one.
    return len(required) == len(there) and all(
        one.admits(item) for one, item in zip(required, there, strict=True)
    )


def _first(step: int, lane: int) -> int:
    """The row or column where an object begins that moves so many of them a frame."""
    return {0: lane, 1: 0, -1: GRID - 1}[step]
