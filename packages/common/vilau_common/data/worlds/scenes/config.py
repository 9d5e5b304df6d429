"""Settings of the scenes world."""

from __future__ import annotations

from dataclasses import dataclass, field

from vilau_common.data.worlds.base import WorldConfig
from vilau_common.data.worlds.scenes.words import COLOURS, SHAPES
from vilau_common.errors import UserError

SMALLEST_IMAGE = 24
"""Below 8 pixels a place the arms of a small cross are thinner than two pixels and shapes run together."""

POSITION_JITTER_LIMIT = 0.06
SIZE_JITTER_LIMIT = 0.05
BRIGHTNESS_JITTER_LIMIT = 0.15
"""Up to these limits a large object stays in its place, sizes stay apart, and so do colours."""


@dataclass(kw_only=True)
class ScenesConfig(WorldConfig):
    """Settings of the scenes world. Jitters are half-widths of uniform distributions.

    video_count, edit_count, shots_count, story_count: training documents of several pictures (`documents`), each kind a
    data set of its own; 0 leaves a kind out. document_test_count: of each kind that is there, and of each test split.
    """

    train_count: int = 24_000
    test_count: int = 1_000
    held_out_count: int = 500
    video_count: int = 0
    edit_count: int = 0
    shots_count: int = 0
    story_count: int = 0
    document_test_count: int = 400
    seed: int = 0
    position_jitter: float = 0.05  # of a place's side, in each direction
    size_jitter: float = 0.04  # of the object's radius
    brightness_jitter: float = 0.06  # of the colour's distance from black
    same_shape_share: float = 0.2  # of pictures with several objects that are given one shape, for counting
    held_out_pairs: list[str] = field(
        default_factory=lambda: ["purple triangle", "yellow cross", "cyan square"]
    )  # "colour shape" combinations that occur in the split test_held_out alone

    def pairs(self) -> frozenset[tuple[str, str]]:
        """The held-out (colour, shape) combinations. Raises UserError for one that does not exist."""
        result = set()
        for text in self.held_out_pairs:
            words = text.split()
            if len(words) != 2 or words[0] not in COLOURS or words[1] not in SHAPES:
                raise UserError(
                    f"data.held_out_pairs holds {text!r}; each must be a colour ({', '.join(COLOURS)}) "
                    f"and a shape ({', '.join(SHAPES)}), such as 'purple triangle'"
                )
            result.add((words[0], words[1]))
        return frozenset(result)

    def check(self) -> None:
        """Raise a UserError if a setting is out of range."""
        pairs = self.pairs()
        if self.image_size < SMALLEST_IMAGE:
            raise UserError(f"data.image_size is {self.image_size}; scenes need at least {SMALLEST_IMAGE}")
        for name, limit in (
            ("position_jitter", POSITION_JITTER_LIMIT),
            ("size_jitter", SIZE_JITTER_LIMIT),
            ("brightness_jitter", BRIGHTNESS_JITTER_LIMIT),
            ("same_shape_share", 1.0),
        ):
            if not 0 <= getattr(self, name) <= limit:
                raise UserError(f"data.{name} is {getattr(self, name)}; it must lie in 0..{limit}")
        for name in (
            *("train_count", "test_count", "held_out_count", "document_test_count"),
            *("video_count", "edit_count", "shots_count", "story_count"),
        ):
            if getattr(self, name) < 0:
                raise UserError(f"data.{name} is {getattr(self, name)}; it cannot be negative")
        if len(pairs) > len(COLOURS) * len(SHAPES) // 2:
            raise UserError(
                f"data.held_out_pairs holds {len(pairs)} combinations; at most half of all may be"
            )
        if self.held_out_count > 0 and not pairs:
            raise UserError(
                "data.held_out_count is above 0 while data.held_out_pairs is empty; set one of them"
            )
