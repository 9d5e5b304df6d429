"""Numbers as shown: units, rounding, bars."""

from __future__ import annotations

import math

import pytest

from vilau_common.report.bars import BARS, Bar
from vilau_common.report.numbers import bar_text, duration, shown


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("lm/question_accuracy/count", 0.9712, "97.1 %"),
        ("tower/codebook_usage_d3", 0.5, "50.0 %"),
        ("held_out/tower/psnr", 27.123, "27.1 dB"),
        ("time/total_seconds", 1234.4, "1,234 s"),
        ("something/new", 0.12345, "0.123"),
        ("lm/question_accuracy", math.nan, "nan %"),
    ],
)
def test_units(key: str, value: float, text: str) -> None:
    assert shown(key, value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.89996, "89.996 %"), (0.9, "90.0 %"), (0.9004, "90.0 %"), (0.84, "84.0 %")]
)
def test_rounding_does_not_cross_the_bar(value: float, text: str) -> None:
    assert shown("lm/draw_object_accuracy", value, Bar(0.9)) == text


def test_rounding_does_not_cross_a_highest_bar() -> None:
    assert shown("time/total_seconds", 900.2, Bar(900, at_most=True)) == "900.2 s"


def test_nearly_all_is_not_all() -> None:
    assert shown("lm/question_accuracy", 0.9999) == "99.99 %"
    assert shown("lm/question_accuracy", 1.0) == "100.0 %"


def test_bars() -> None:
    assert Bar(0.9).met(0.9) and not Bar(0.9).met(0.8999) and not Bar(0.9).met(math.nan)
    assert Bar(900, at_most=True).met(900) and not Bar(900, at_most=True).met(900.1)
    assert bar_text("time/total_seconds", BARS["scenes"]["time/total_seconds"]) == "≤ 900 s"
    assert bar_text("lm/caption_scene_accuracy", BARS["easy_vqa"]["lm/caption_scene_accuracy"]) == "≥ 95 %"
    assert "lm/draw_scene_accuracy" not in BARS["easy_vqa"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"), (9.96, "10 s"), (42.4, "42 s"), (59.7, "1 min"), (492, "8 min 12 s"),
        (3599.6, "1 h"), (7500, "2 h 5 min"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
