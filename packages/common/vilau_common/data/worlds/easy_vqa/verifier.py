"""Reads easy-VQA pictures back by classical vision: no trained weight is involved.

The ground is the border's median colour. For each colour of the palette, every pixel's share of that colour
is its position on the line from the ground to the colour; the shares' moments (area, centre, spread) give the
one circle, upright rectangle and upright equilateral triangle that could lie there. Each of these is drawn,
sharp and blurred, and the drawing with the least squared error is what the picture shows, provided that

- no part of the picture is left unexplained (two colours, torn shapes, stray marks), where an edge may lie
  EDGE_TOLERANCE beside that of the drawing: LOCAL_RESIDUAL;
- all that is left over is little beside the shape (a diamond, half a disc): SHAPE_RESIDUAL;
- it is clearly better than every other shape (half circle, half rectangle): MARGIN;
- the colour that fits it best is near the palette's: COLOUR_DISTANCE.

Otherwise the object is unreadable, which never equals a truth. Nothing standing out is an empty scene.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vilau_common.data.worlds.easy_vqa.language import COLOURS, SHAPES
from vilau_common.data.worlds.filters import (
    FloatArray,
    gaussian_blur,
    largest_local_mean,
    local_extremes,
    local_mean,
)
from vilau_common.data.worlds.scene import UNREADABLE, Scene, SceneObject

PALETTE = {  # RGB in 0..255; every train picture has exactly these
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
    "brown": (165, 42, 42),
}

LOCAL_RESIDUAL = 0.25
"""Greatest colour difference over 3x3 pixels, RGB in [0, 1];
halves of the nearest two colours differ by that from their mean."""
EDGE_TOLERANCE = 1
"""Pixels at 32 pixels a picture: a side that leans a little or a rounded corner makes no other shape."""
SHAPE_RESIDUAL = 0.28
"""Of 1: a diamond of eight pixels leaves 0.29 beside the circle of its area, half a disc 0.31, a triangle on its head
0.41; 99 of 100 of the set's pictures leave 0.13 or less."""
MARGIN = 0.3
"""1 is a picture that equals its drawing, 0 one that another shape explains as well. Circles and triangles of
four pixels, noisy or blurred to 25 dB, stay above 0.3 in 99 of 100."""
COLOUR_DISTANCE = 0.24
"""Just under half the distance of the nearest two colours."""

SUPPORT = 0.3  # mean share of a colour over 3x3 pixels from which on the middle one counts as near the shape
SMALLEST_AREA = 4.0  # square pixels at 32 pixels a picture; half of the smallest true shape
REFERENCE_SIZE = 32
BLURS = (0.0, 0.5, 0.75, 1.0)  # standard deviations in pixels at 32 pixels a picture
TRIANGLE_HEIGHT = 0.5 * 3**0.5  # of the base
CHUNK = 64  # pictures read at once; 64 * 8 colours * 32 * 32 pixels * 4 bytes = 2 MB an array


class EasyVqaVerifier:
    """Reads pictures of one image size."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self._palette = np.array([PALETTE[colour] for colour in COLOURS], np.float32) / np.float32(255)
        self._pixels = np.arange(image_size, dtype=np.float32) + np.float32(0.5)
        self._smallest_area = SMALLEST_AREA * (image_size / REFERENCE_SIZE) ** 2
        self._edge_tolerance = round(EDGE_TOLERANCE * image_size / REFERENCE_SIZE)

    def read(self, images: npt.NDArray[np.uint8]) -> list[Scene]:
        """Scenes of pictures uint8 [B, image_size, image_size, 3]: one object or none."""
        scenes: list[Scene] = []
        for start in range(0, len(images), CHUNK):
            scenes += self._read(images[start : start + CHUNK].astype(np.float32) / np.float32(255))
        return scenes

    def _read(self, pictures: FloatArray) -> list[Scene]:
        """Scenes of one chunk, float32 [B, H, W, 3] in [0, 1]."""
        batch = len(pictures)
        ground = np.median(_border(pictures), axis=1)  # [B, 3]
        deviation = pictures - ground[:, None, None, :]
        contrast = self._palette - ground[:, None]  # [B, colours, 3]
        share = np.einsum("bhwc,bkc->bkhw", deviation, contrast / np.square(contrast).sum(-1, keepdims=True))
        models = self._models(share)  # [B, colours, shapes * blurs, H, W]
        # |D - m c|^2 = |D|^2 - 2 |c|^2 <share, m> + |c|^2 |m|^2, without forming the difference.
        strength = np.square(contrast).sum(-1)[..., None]  # [B, colours, 1]
        energy = np.square(deviation).sum(axis=(1, 2, 3))[:, None, None]
        overlap = np.einsum("bkhw,bkmhw->bkm", share, models)
        error = energy - strength * (2 * overlap - np.square(models).sum(axis=(3, 4)))
        each = np.arange(batch)
        flat = error.reshape(batch, -1).argmin(axis=1)
        colour, variant = np.divmod(flat, error.shape[2])
        model = models[each, colour, variant]  # [B, H, W]
        lead = self._lead(error[each, colour], models[each, colour], strength[each, colour], variant)
        fitted = (
            np.einsum("bhw,bhwc->bc", model, deviation)
            / np.maximum(np.square(model).sum(axis=(1, 2)), np.finfo(np.float32).tiny)[:, None]
        )
        distance = np.linalg.norm(fitted - contrast[each, colour], axis=1)
        # Within the tolerance of an edge a pixel may be as much of the colour as it is, and of no other colour.
        least, most = local_extremes(model, self._edge_tolerance)
        explained = np.clip(share[each, colour], least, most)
        residual = deviation - explained[..., None] * contrast[each, colour][:, None, None, :]
        readable = (
            (largest_local_mean(residual) <= LOCAL_RESIDUAL)
            & (lead >= MARGIN)
            & (distance <= COLOUR_DISTANCE)
            & (self._shape_residual(share[each, colour], model) <= SHAPE_RESIDUAL)
            & (model.sum(axis=(1, 2)) >= self._smallest_area)
        )
        occupied = largest_local_mean(deviation) > LOCAL_RESIDUAL
        shape = variant // len(BLURS)
        return [
            _scene(bool(occupied[i]), bool(readable[i]), SHAPES[shape[i]], COLOURS[colour[i]]) for i in each
        ]

    def _lead(
        self, error: FloatArray, models: FloatArray, strength: FloatArray, best: npt.NDArray[np.intp]
    ) -> FloatArray:
        """How much better the best model is than each other shape's, [B].

        error [B, m], models [B, m, H, W], strength [B, 1], best [B].
        """
        each = np.arange(len(error))
        apart = np.square(models - models[each, best][:, None]).sum(axis=(2, 3)) * strength
        lead = (error - error[each, best][:, None]) / np.maximum(apart, np.finfo(np.float32).tiny)
        same_shape = np.arange(error.shape[1]) // len(BLURS) == (best // len(BLURS))[:, None]
        return np.asarray(np.where(same_shape, np.inf, lead).min(axis=1))

    def _shape_residual(self, share: FloatArray, model: FloatArray) -> FloatArray:
        """Root of the squared share that the model leaves unexplained, as a part of all of it, [B].

        share and model [B, H, W]. Around the shape alone, and cut to [0, 1]: the ground's noise would weigh more
        than a small shape.
        """
        around = local_extremes(model, 2 * self._edge_tolerance)[1] > 0
        whole = np.clip(share, 0, 1) * around
        left = np.square(whole - model).sum(axis=(1, 2))
        return np.asarray(np.sqrt(left / np.maximum(np.square(whole).sum(axis=(1, 2)), 1)))

    def _models(self, share: FloatArray) -> FloatArray:
        """Coverage of the shapes that fit the shares' moments, [B, colours, shapes * blurs, H, W]."""
        core = (local_mean(share) > SUPPORT).astype(np.float32)
        near = share * (local_mean(core) > 0)  # one pixel more on every side: blurred edges count in full
        area = np.maximum(near.sum(axis=(2, 3)), 1)
        columns, rows = near.sum(axis=2), near.sum(axis=3)
        centre_x, centre_y = columns @ self._pixels / area, rows @ self._pixels / area
        spread_x = (columns * np.square(self._pixels - centre_x[..., None])).sum(-1) / area
        spread_y = (rows * np.square(self._pixels - centre_y[..., None])).sum(-1) / area
        x = np.abs(self._pixels - centre_x[..., None])[:, :, None, :]  # symmetric shapes all
        y = (self._pixels - centre_y[..., None])[:, :, :, None]
        area, spread = area[..., None, None], (spread_x - spread_y)[..., None, None]
        distances = (
            np.sqrt(x * x + y * y) - np.sqrt(area / np.float32(np.pi)),
            _rectangle_distance(x, y, area, spread),
            _triangle_distance(x, y, area),
        )
        scale = self.image_size / REFERENCE_SIZE
        sharp = [np.clip(np.float32(0.5) - distance, 0, 1) for distance in distances]
        return np.stack([gaussian_blur(cover, blur * scale) for cover in sharp for blur in BLURS], axis=2)


def _rectangle_distance(x: FloatArray, y: FloatArray, area: FloatArray, spread: FloatArray) -> FloatArray:
    """From width * height = area and width^2 - height^2 = 12 * spread, which blur leaves as they are."""
    difference = 12 * spread
    width = np.sqrt((difference + np.sqrt(np.square(difference) + 4 * np.square(area))) / 2)
    return np.asarray(np.maximum(x - width / 2, np.abs(y) - area / width / 2), dtype=np.float32)


def _triangle_distance(x: FloatArray, y: FloatArray, area: FloatArray) -> FloatArray:
    """An upright equilateral triangle around its centroid; its three sides are one inner radius away."""
    base = np.sqrt(2 * area / np.float32(TRIANGLE_HEIGHT))
    inner = base * np.float32(TRIANGLE_HEIGHT / 3)
    return np.asarray(np.maximum(y, x * TRIANGLE_HEIGHT - y / 2) - inner, dtype=np.float32)


def _scene(occupied: bool, readable: bool, shape: str, colour: str) -> Scene:
    if not occupied:
        return Scene(())
    return Scene((SceneObject(shape, colour) if readable else SceneObject(UNREADABLE, UNREADABLE),))


def _border(pictures: FloatArray) -> FloatArray:
    """The outermost pixels, [B, 4 * side, 3]."""
    return np.concatenate([pictures[:, 0], pictures[:, -1], pictures[:, :, 0], pictures[:, :, -1]], axis=1)
