"""Drawing of scenes: anti-aliased shapes from signed distances, in batches, with numpy alone.

Coordinates are in pixels, y downwards; pixel (i, j) has its centre at (i + 0.5, j + 0.5). An object's radius
is a share of its place's side, so that pictures of all sizes show the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vilau_common.data.worlds.filters import FloatArray
from vilau_common.data.worlds.scene import Scene, SceneObject
from vilau_common.data.worlds.scenes.words import COLOURS, GRID, SHAPES, row_and_column

BACKGROUND = 0.96  # grey level in [0, 1]
PALETTE = np.array(
    [  # in the order of COLOURS; RGB in [0, 1], pairwise at least 0.5 apart, as from the background
        (0.86, 0.14, 0.14),
        (0.16, 0.62, 0.22),
        (0.14, 0.24, 0.86),
        (0.94, 0.78, 0.10),
        (0.58, 0.18, 0.72),
        (0.14, 0.76, 0.88),
    ],
    dtype=np.float32,
)
RADIUS = {"small": 0.28, "large": 0.43}  # of a place's side; areas differ by 2.4
SQUARE_HALF_SIDE = 0.90  # of the radius: then circle and square have nearly the same area
TRIANGLE_HALF_BASE = 0.98  # of the radius
TRIANGLE_BOTTOM = 0.80  # of the radius, below the centre; the apex is one radius above it
CROSS_HALF_ARM = 0.36  # of the radius
PATCH_MARGIN = 3  # pixels around a place's side that may be touched by jitter and anti-aliasing


@dataclass(frozen=True)
class Placement:
    """How an object was jittered."""

    shift_x: float = 0.0  # of a place's side
    shift_y: float = 0.0
    scale: float = 1.0  # of the radius
    brightness: float = 1.0  # factor on the colour


def coverage(shape: str, x: FloatArray, y: FloatArray, radius: FloatArray | float) -> FloatArray:
    """Share of each pixel that a shape covers, float32 in [0, 1], broadcast from x, y and radius.

    x, y are pixel centres as seen from the shape's centre. Raises ValueError for an unknown shape.
    """
    return np.asarray(np.clip(0.5 - _signed_distance(shape, x, y, radius), 0, 1), dtype=np.float32)


def _signed_distance(
    shape: str, x: FloatArray, y: FloatArray, radius: FloatArray | float
) -> npt.NDArray[Any]:
    """Distance of points from a shape around the origin, negative inside."""
    distance: npt.NDArray[Any]
    wide, high = np.abs(x), np.abs(y)
    if shape == "circle":
        distance = np.sqrt(x * x + y * y) - radius
    elif shape == "square":
        distance = np.maximum(wide, high) - SQUARE_HALF_SIDE * radius
    elif shape == "triangle":
        height = 1 + TRIANGLE_BOTTOM
        slope = math.hypot(height, TRIANGLE_HALF_BASE)  # of a side with unit radius
        sides = (wide * height - (y + radius) * TRIANGLE_HALF_BASE) / slope
        box = np.maximum(
            wide - TRIANGLE_HALF_BASE * radius, np.maximum(y - TRIANGLE_BOTTOM * radius, -y - radius)
        )
        distance = np.maximum(sides, box)  # the box also cuts what the sides leave beyond the sharp corners
    elif shape == "cross":
        arm = CROSS_HALF_ARM * radius
        distance = np.minimum(np.maximum(wide - radius, high - arm), np.maximum(wide - arm, high - radius))
    else:
        raise ValueError(f"unknown shape {shape!r}; known are {', '.join(SHAPES)}")
    return distance


def draw(
    scenes: Sequence[Scene], placements: Sequence[Sequence[Placement]], image_size: int
) -> npt.NDArray[np.uint8]:
    """Pictures uint8 [B, image_size, image_size, 3]; `placements` go with each scene's objects."""
    cell = image_size / GRID
    patch = math.ceil(cell) + PATCH_MARGIN
    margin = patch  # patches may leave the picture; the canvas is cut afterwards
    side = image_size + 2 * margin
    canvas = np.full((len(scenes), side, side, 3), BACKGROUND, dtype=np.float32)
    # Slot by slot: within one slot no picture occurs twice, so that scattered assignment is well defined.
    for slot in range(max((len(scene.objects) for scene in scenes), default=0)):
        for shape in SHAPES:
            _draw_slot(canvas, scenes, placements, slot, shape, cell, patch, margin)
    picture = canvas[:, margin : margin + image_size, margin : margin + image_size]
    return np.asarray(np.rint(picture * 255), dtype=np.uint8)


def _draw_slot(
    canvas: FloatArray,
    scenes: Sequence[Scene],
    placements: Sequence[Sequence[Placement]],
    slot: int,
    shape: str,
    cell: float,
    patch: int,
    margin: int,
) -> None:
    """Blend the objects number `slot` that have this shape into the canvas."""
    rows = [
        (index, *_geometry(scene.objects[slot], placements[index][slot], cell))
        for index, scene in enumerate(scenes)
        if slot < len(scene.objects) and scene.objects[slot].shape == shape
    ]
    if not rows:
        return
    table = np.array(rows, dtype=np.float32)
    index = table[:, 0].astype(np.intp)
    centre_x, centre_y, radius = (table[:, column, None, None] for column in (1, 2, 3))
    colour = table[:, None, None, 4:7]
    left = np.floor(centre_x - patch / 2).astype(np.intp)
    top = np.floor(centre_y - patch / 2).astype(np.intp)
    steps = np.arange(patch)
    across, down = left + steps[None, None, :], top + steps[None, :, None]
    half = np.float32(0.5)
    share = coverage(
        shape,
        across.astype(np.float32) + half - centre_x,
        down.astype(np.float32) + half - centre_y,
        radius,
    )[..., None]
    where = (index[:, None, None], down + margin, across + margin)
    canvas[where] = canvas[where] * (1 - share) + colour * share


def _geometry(
    item: SceneObject, placement: Placement, cell: float
) -> tuple[float, float, float, float, float, float]:
    """Centre x, y and radius in pixels, then the colour's RGB in [0, 1]."""
    assert item.place is not None and item.size is not None
    row, column = row_and_column(item.place)
    red, green, blue = np.minimum(PALETTE[COLOURS.index(item.colour)] * placement.brightness, 1).tolist()
    return (
        (column + 0.5 + placement.shift_x) * cell,
        (row + 0.5 + placement.shift_y) * cell,
        RADIUS[item.size] * placement.scale * cell,
        red,
        green,
        blue,
    )
