"""Guidance against drawing accuracy: what is plotted and listed of the numbers; the sweep itself is in test_demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from vilau_common.errors import UserError
from vilau_unified_lm.evaluation.guidance import markdown, panels, sweep_guidance

FOUND = {
    1.0: {
        "draw_object_accuracy": 0.5,
        "draw_object_accuracy/two": 0.25,
        "held_out/draw_object_accuracy": 0.1,
    },
    3.0: {
        "draw_object_accuracy": 0.95,
        "draw_object_accuracy/two": 0.75,
        "held_out/draw_object_accuracy": 0.2,
    },
}


def test_curves_run_over_the_scale() -> None:
    totals, kinds = panels(FOUND)
    assert {curve.label: curve.points for curve in totals.curves} == {
        "objects": [(1.0, 50.0), (3.0, 95.0)],
        "objects, held out": [(1.0, 10.0), (3.0, 20.0)],
    }
    assert {curve.label: curve.points for curve in kinds.curves} == {"two": [(1.0, 25.0), (3.0, 75.0)]}
    assert totals.horizontal == "guidance"


def test_a_world_of_one_kind_has_one_panel() -> None:
    assert len(panels({1.0: {"draw_object_accuracy": 0.5}})) == 1


def test_the_table_has_a_row_for_each_scale() -> None:
    assert markdown(FOUND, 700).splitlines() == [
        "| guidance | objects | objects, held out | two |",
        "|---|---|---|---|",
        "| 1 | 50.0 % | 10.0 % | 25.0 % |",
        "| 3 | 95.0 % | 20.0 % | 75.0 % |",
        "",
        "700 prompts a row and test split, the same with the same seeds.",
    ]


def test_a_run_that_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not evaluated"):
        sweep_guidance(tmp_path)
