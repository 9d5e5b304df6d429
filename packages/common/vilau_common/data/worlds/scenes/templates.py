"""Drawings of every object that could stand at a place: what the scenes verifier compares pictures with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from vilau_common.data.worlds.filters import FloatArray, gaussian_blur
from vilau_common.data.worlds.scenes.drawing import RADIUS, coverage
from vilau_common.data.worlds.scenes.words import GRID, SHAPES, SIZES, row_and_column

CLASSES = tuple(product(SHAPES, SIZES))

OFFSETS = 5  # positions tried in each direction; at 48 pixels they are 0.4 pixels apart
MAX_OFFSET = 0.05  # of a place's side
SCALES = (0.98, 1.02)  # of the radius
BLURS = (0.0, 0.45, 0.7, 0.95, 1.2)  # standard deviations in pixels at 32 pixels a picture
REFERENCE_SIZE = 32
FRAME = 4  # pixels drawn around a place, and cut off after blurring


@dataclass(frozen=True)
class PlaceTemplates:
    """The templates of one place: P pixels, n templates in the order of CLASSES, variants within a class."""

    place: str
    rows: slice  # of the picture; pixels on the border of two places belong to both
    columns: slice
    weight: FloatArray  # [P] share of each pixel that lies inside the place
    directions: FloatArray  # [n, P] weighted coverage, scaled to unit norm
    norms: FloatArray  # [n] the norms before scaling
    coverages: FloatArray  # [n, P] unweighted coverage
    separation: FloatArray  # [n, classes] share of a template's energy that no template of a class explains


def build_templates(place: str, image_size: int) -> PlaceTemplates:
    """All templates of one place of pictures of this size."""
    cell = image_size / GRID
    row, column = row_and_column(place)
    rows, columns = _span(row, cell), _span(column, cell)
    weight = np.outer(_inside(rows, row, cell), _inside(columns, column, cell)).astype(np.float32).ravel()
    shifts = np.linspace(-MAX_OFFSET, MAX_OFFSET, OFFSETS) * cell
    y = _around(rows, (row + 0.5) * cell + shifts)[:, None, :, None]
    x = _around(columns, (column + 0.5) * cell + shifts)[None, :, None, :]
    inner = slice(FRAME, -FRAME)
    covers = []
    for (shape, size), scale, blur in product(CLASSES, SCALES, BLURS):
        sharp = coverage(shape, x, y, RADIUS[size] * scale * cell)  # [offsets, offsets, h, w]
        blurred = gaussian_blur(sharp, blur * image_size / REFERENCE_SIZE)[..., inner, inner]
        covers.append(blurred.reshape(OFFSETS**2, -1))
    coverages = np.concatenate(covers)
    weighted = coverages * weight
    norms = np.linalg.norm(weighted, axis=1)
    directions = weighted / norms[:, None]
    likeness = np.square(directions @ directions.T).reshape(len(directions), len(CLASSES), -1).max(axis=2)
    return PlaceTemplates(place, rows, columns, weight, directions, norms, coverages, 1 - likeness)


def _span(index: int, cell: float) -> slice:
    """The pixels that lie in the row or column of cells, wholly or in part."""
    rounding = 1e-6  # 32 / 3 * 3 must not reach into pixel 32
    return slice(math.floor(index * cell + rounding), math.ceil((index + 1) * cell - rounding))


def _inside(span: slice, index: int, cell: float) -> npt.NDArray[np.float64]:
    """The share of each pixel of the span that lies in the row or column of cells."""
    pixels = np.arange(span.start, span.stop)
    share: npt.NDArray[np.float64] = np.minimum(pixels + 1, (index + 1) * cell) - np.maximum(
        pixels, index * cell
    )
    return share.clip(0, 1)


def _around(span: slice, centres: npt.NDArray[np.float64]) -> FloatArray:
    """Pixel centres of the span and its frame, as seen from each centre: [centres, pixels]."""
    pixels = np.arange(span.start - FRAME, span.stop + FRAME) + 0.5
    return (pixels[None, :] - centres[:, None]).astype(np.float32)
