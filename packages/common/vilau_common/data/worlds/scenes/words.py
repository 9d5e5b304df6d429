"""The attribute words of the scenes world, and what they mean geometrically."""

from __future__ import annotations

from vilau_common.data.worlds.scene import SceneObject

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SIZES = ("small", "large")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
GRID = 3
NUMBERS = ("zero", "one", "two", "three")
MAX_OBJECTS = 3
OBJECT = "object"  # stands for any shape
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITES)


def plural(noun: str) -> str:
    """circle -> circles, cross -> crosses."""
    return noun + ("es" if noun.endswith("s") else "s")


def row_and_column(place: str) -> tuple[int, int]:
    """The place's cell, rows from the top."""
    return divmod(PLACES.index(place), GRID)


def place_of(row: int, column: int) -> str:
    """The place of a cell."""
    return PLACES[row * GRID + column]


def relation_holds(relation: str, first: SceneObject, second: SceneObject) -> bool:
    """Whether `first` is <relation> `second`, comparing columns ("left of") or rows ("above") alone."""
    assert first.place is not None and second.place is not None
    first_row, first_column = row_and_column(first.place)
    second_row, second_column = row_and_column(second.place)
    if relation == "left of":
        return first_column < second_column
    if relation == "right of":
        return first_column > second_column
    if relation == "above":
        return first_row < second_row
    if relation == "below":
        return first_row > second_row
    raise ValueError(f"unknown relation {relation!r}; known are {', '.join(RELATIONS)}")
