"""Rows of pictures on the page: videos, edits, shots and stories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vilau_common.errors import UserError
from vilau_common.report import build_report


def strip(maker: Any, count: int, **changes: Any) -> dict[str, Any]:
    whole = {"pictures": [maker.picture() for _ in range(count)], "labels": [], "kind": "move"}
    told = {"text": "move it to the top", "outcome": "a red circle", "right": True, "held_out": False}
    return {**whole, **told, **changes}


def test_each_sort_has_its_section_and_numbers(maker: Any, parse: Callable[[Path], Any]) -> None:
    sorts = {"videos": 3, "edits": 2, "shots": 5, "stories": 3}
    maker.write("evaluation/examples.json", {name: [strip(maker, n)] for name, n in sorts.items()})
    results = {"lm/edit_accuracy": 0.875, "held_out/lm/edit_accuracy": 0.5, "lm/edit_accuracy/move": 0.75}
    maker.write("results.json", {**results, "lm/shots_4_accuracy": 1.0})
    page = parse(build_report(maker.path))
    ids = [has["id"] for tag, has in page.tags if tag == "section"]
    assert [name for name in ids if name in sorts] == list(sorts)
    shown = [has for tag, has in page.tags if tag == "img" and "shown" in has.get("class", "")]
    assert len(shown) == sum(sorts.values())
    assert "87.5 % (held out: 50.0 %)" in page.text and "75.0 %" in page.text
    assert "4 examples 100.0 %" in page.text


def test_labels_stand_under_their_pictures(maker: Any, parse: Callable[[Path], Any]) -> None:
    rows = [strip(maker, 2, labels=["before", "after"], right=False, held_out=True, outcome="")]
    maker.write("evaluation/examples.json", {"edits": rows})
    text = parse(build_report(maker.path)).text
    assert "before after ✗ wrong move · held out “move it to the top” nothing" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pictures": "a.png"}, r"edits\[0\]: 'pictures' must be a list of paths of pictures"),
        ({"pictures": ["pictures/none.png"]}, r"edits\[0\]: there is no picture 'pictures/none.png'"),
        ({"labels": [1]}, r"edits\[0\]: 'labels' must be a list of texts"),
        ({"labels": ["before"]}, r"edits\[0\] has 1 labels, but 2 pictures"),
    ],
)
def test_a_wrong_row_is_named(maker: Any, change: dict[str, Any], sentence: str) -> None:
    maker.write("evaluation/examples.json", {"edits": [strip(maker, 2, **change)]})
    with pytest.raises(UserError, match=sentence):
        build_report(maker.path)
