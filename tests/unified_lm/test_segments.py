"""Long documents in parts: nothing lost, nothing longer than a row, no image torn."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_lm import POSITIONS, D

from vilau_unified_lm.segments import (
    Document,
    ImageSegment,
    Segment,
    TextSegment,
    largest_unit,
    split_document,
)

BEGIN, END, START, STOP = 1, 2, 3, 4


def picture(number: int, frames: int = 1) -> list[Segment]:
    codes = [np.full((POSITIONS, D), number + frame) for frame in range(frames)]
    return [
        TextSegment((START,), False),
        *(ImageSegment(c, False) for c in codes),
        TextSegment((STOP,), False),
    ]


def text(*ids: int) -> TextSegment:
    return TextSegment(ids, True)


def document(*segments: Segment) -> Document:
    return Document((TextSegment((BEGIN,), False), *segments))


def flat(segments: tuple[Segment, ...]) -> list[object]:
    """Ids, and (picture, place) of visual positions."""
    return [
        token
        for segment in segments
        for token in (
            segment.ids
            if isinstance(segment, TextSegment)
            else [(int(codes[0]), place) for place, codes in enumerate(segment.codes)]
        )
    ]


@pytest.mark.parametrize("length", [2, 3, 7, 10, 11, 12, 100])
def test_text_is_cut_into_full_parts(length: int) -> None:
    long = document(text(*range(10, 20), END))
    parts = split_document(long, length)
    tokens = []
    for part in parts:
        assert flat(part.segments)[0] == BEGIN and len(part) <= length
        assert [segment.supervised for segment in part.segments] == [False, True]
        tokens += flat(part.segments[1:])
    assert [len(part) for part in parts[:-1]] == [length] * (len(parts) - 1)
    # Of a part that would say nothing but that the text ends, nothing can be learnt.
    assert tokens == [*range(10, 20), END] if (11 % (length - 1)) != 1 else [*range(10, 20)]


@pytest.mark.parametrize("length", [12, 13, 14, 16, 20, 30])
def test_images_stay_whole_with_their_marks(length: int) -> None:
    long = document(
        text(*range(10, 22)),
        *picture(50),
        *picture(60),
        text(30, 31),
        *picture(70),
        text(*range(40, 49)),
        text(END),
    )
    assert largest_unit(long) == 1 + 1 + POSITIONS + 1 == 12
    parts = split_document(long, length)
    tokens = []
    for part in parts:
        assert flat(part.segments)[0] == BEGIN and len(part) <= length
        assert any(segment.supervised for segment in part.segments)
        for index, segment in enumerate(part.segments):
            if isinstance(segment, ImageSegment):
                assert part.segments[index - 1] == TextSegment((START,), False)
                assert part.segments[index + 1] == TextSegment((STOP,), False)
                assert segment.codes.shape == (POSITIONS, D)
        tokens += flat(part.segments[1:])
    # Images without text in their part are left out, all text stays in its order.
    written = [token for token in tokens if isinstance(token, int) and token not in (START, STOP, END)]
    assert written == [*range(10, 22), 30, 31, *range(40, 49)]
    if length >= 24:
        assert tokens == flat(long.segments[1:])


def test_a_videos_frames_are_one() -> None:
    long = document(text(10, 11, 12), *picture(50, frames=2), text(13, END))
    assert largest_unit(long) == 3 + 2 * POSITIONS
    parts = split_document(long, 22)
    assert [len(part) for part in parts] == [4, 22]
    assert [type(segment) for segment in parts[1].segments[2:4]] == [ImageSegment] * 2
    assert largest_unit(document(text(10))) == 0
