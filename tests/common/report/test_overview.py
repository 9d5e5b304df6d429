"""overview.png: frames tell right from wrong, and examples are taken as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageColor

from vilau_common.report.examples import Answer, Drawing, Examples, parse_examples
from vilau_common.report.overview import DRAWINGS, RIGHT, WIDTH, WRONG, in_turn, overview, wrapped


def share_of(colour: str, picture: Any) -> float:
    return float((np.asarray(picture) == ImageColor.getrgb(colour)).all(axis=-1).mean())


def drawn(maker: Any, **changes: Any) -> Examples:
    listed = {"drawings": [maker.drawing(**changes)]}
    return parse_examples(listed, maker.path / "evaluation")


def test_frames(maker: Any) -> None:
    right, wrong = overview(drawn(maker)), overview(drawn(maker, picture_right=False))
    assert right is not None and wrong is not None
    assert right.width == wrong.width == WIDTH
    assert share_of(RIGHT, right) == share_of(WRONG, wrong) > 0
    assert share_of(WRONG, right) == share_of(RIGHT, wrong) == 0


def test_parts_without_examples_are_left_out(maker: Any) -> None:
    assert overview(Examples()) is None
    whole = overview(parse_examples(maker.examples, maker.path / "evaluation"))
    part = overview(drawn(maker))
    assert whole is not None and part is not None
    assert whole.height > part.height


@pytest.mark.parametrize("side", [8, 32, 36, 300])
def test_pictures_of_every_size_are_shown_equally_large(maker: Any, side: int) -> None:
    shown = overview(drawn(maker, picture=maker.picture(side)))
    usual = overview(drawn(maker))
    assert shown is not None and usual is not None
    assert shown.size == usual.size


def test_kinds_take_turns_in_their_order() -> None:
    def drawing(kind: str, number: int) -> Drawing:
        return Drawing(f"{kind} {number}", kind, Path(f"{kind}{number}"), (True,), True, "", False)

    drawings = [drawing("two", n) for n in range(9)] + [drawing("single", n) for n in range(2)]
    chosen = [example.prompt for example in in_turn(drawings, 6)]
    assert chosen == ["two 0", "single 0", "two 1", "single 1", "two 2", "two 3"]
    assert len(in_turn(drawings, DRAWINGS)) == 11


def test_new_pictures_come_before_shown_ones() -> None:
    def answer(kind: str, picture: str) -> Answer:
        return Answer(Path(picture), f"{kind} {picture}?", kind, "", "", True)

    answers = [answer("count", "a"), answer("shape", "a"), answer("shape", "b")]
    assert [example.question for example in in_turn(answers, 3)] == ["count a?", "shape b?", "shape a?"]


def test_text_is_wrapped_between_words() -> None:
    assert wrapped("a red circle at the top", 8, len) == ["a red", "circle", "at the", "top"]
    assert wrapped("unbreakable words", 5, len) == ["unbreakable", "words"]
    assert wrapped("", 5, len) == []
