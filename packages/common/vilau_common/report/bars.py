"""What a run's numbers must reach, by experiment. A number that is not named here has no bar."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """A number that must not be missed: a least one, or with `at_most` a greatest one."""

    threshold: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Whether the value reaches the bar; NaN never does."""
        return value <= self.threshold if self.at_most else value >= self.threshold


_BOTH = {
    "verifier/scene_accuracy": Bar(0.99),
    "tower/psnr": Bar(25),
    "tower/read_back_accuracy": Bar(0.95),
    "tower/hard_negative_accuracy": Bar(0.97),
    "lm/question_accuracy": Bar(0.97),
    "lm/draw_object_accuracy": Bar(0.90),
    "time/total_seconds": Bar(900, at_most=True),
}

BARS: dict[str, dict[str, Bar]] = {
    "scenes": {**_BOTH, "lm/draw_scene_accuracy": Bar(0.80), "lm/caption_scene_accuracy": Bar(0.90)},
    "scenes/full": {
        **_BOTH,
        "lm/question_accuracy": Bar(0.99),
        "lm/draw_object_accuracy": Bar(0.97),
        "lm/draw_scene_accuracy": Bar(0.92),
        "lm/caption_scene_accuracy": Bar(0.90),
        "lm/video_question_object_accuracy": Bar(0.90),
        "lm/video_question_direction_accuracy": Bar(0.90),
        "lm/draw_video_object_accuracy": Bar(0.90),
        "lm/draw_video_direction_accuracy": Bar(0.90),
        "lm/edit_accuracy": Bar(0.85),
        "time/total_seconds": Bar(3_600, at_most=True),
    },
    "easy_vqa": {**_BOTH, "lm/caption_scene_accuracy": Bar(0.95)},
}
