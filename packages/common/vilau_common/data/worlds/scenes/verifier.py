"""Reads pictures of the scenes world back, by analysis through synthesis: no trained weight is involved.

Every place is compared with every object that could stand there (shape, size, offset, slight blur). For a
template t (coverage, one number a pixel) and a picture's deviation from the background D (three numbers a
pixel), the best colour deviation is a = <D, t> / <t, t>, and t explains |<D, t>|^2 / <t, t> of |D|^2. The
template that explains most is what the place shows, provided that

- no part of the place is left unexplained (two-coloured or torn objects, stray marks): LOCAL_RESIDUAL;
- it is clearly better than every template of another shape or size (half circle, half square): MARGIN;
- its colour is near one of the world's colours: COLOUR_DISTANCE.

Otherwise the object is unreadable, which never equals a truth. A place where nothing stands out is empty.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vilau_common.data.worlds.filters import FloatArray, largest_local_mean
from vilau_common.data.worlds.scene import UNREADABLE, Scene, SceneObject
from vilau_common.data.worlds.scenes.drawing import BACKGROUND, PALETTE
from vilau_common.data.worlds.scenes.templates import CLASSES, PlaceTemplates, build_templates
from vilau_common.data.worlds.scenes.words import COLOURS, PLACES

LOCAL_RESIDUAL = 0.22
"""Greatest colour difference over 3x3 pixels, RGB in [0, 1]. True pictures with noise or blur of 25 dB stay
below 0.2; halves of the two nearest colours (blue and purple) are 0.235 from their mean."""
MARGIN = 0.4
"""1 is a picture that equals its template, 0 one that another class explains as well. True pictures with
noise or blur of 26 dB stay above 0.4; nineteen in twenty equal mixtures of shapes or sizes stay below."""
COLOUR_DISTANCE = 0.22
"""Just under half the distance of the nearest two colours; brightness jitter takes up to 0.1 of it."""

CHUNK = 256  # pictures read at once: bounds memory to about 100 MB


class ScenesVerifier:
    """Reads pictures of one image size; building the templates takes about half a second."""

    def __init__(self, image_size: int) -> None:
        self._places = [build_templates(place, image_size) for place in PLACES]

    def read(self, images: npt.NDArray[np.uint8]) -> list[Scene]:
        """Scenes of pictures uint8 [B, image_size, image_size, 3], objects in the order of places."""
        scenes: list[Scene] = []
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK].astype(np.float32) / np.float32(255)
            deviation = chunk - np.float32(BACKGROUND)
            by_place = [_read_place(deviation[:, known.rows, known.columns], known) for known in self._places]
            scenes += [
                Scene(tuple(item for item in objects if item is not None))
                for objects in zip(*by_place, strict=True)
            ]
        return scenes


def _read_place(deviation: FloatArray, known: PlaceTemplates) -> list[SceneObject | None]:
    """What stands at one place in each of B pictures; deviation float32 [B, h, w, 3] from the background."""
    batch, height, width, _ = deviation.shape
    each = np.arange(batch)
    flat = deviation.reshape(batch, height * width, 3)
    weighted = np.ascontiguousarray((flat * known.weight[:, None]).transpose(0, 2, 1))  # [B, 3, P]
    projection = (weighted.reshape(batch * 3, -1) @ known.directions.T).reshape(batch, 3, -1)
    explained = np.square(projection).sum(axis=1)  # [B, n]
    best = explained.argmax(axis=1)
    by_class = explained.reshape(batch, len(CLASSES), -1)
    winner = best // by_class.shape[2]
    most = explained[each, best, None]
    lead = (most - by_class.max(axis=2)) / np.maximum(
        most * known.separation[best], np.finfo(np.float32).tiny
    )
    lead[each, winner] = np.inf
    fitted = projection[each, :, best] / known.norms[best, None]  # [B, 3] deviation of the object's colour
    distance = np.linalg.norm(fitted[:, None] + np.float32(BACKGROUND) - PALETTE, axis=2)  # [B, colours]

    inside = known.weight.reshape(height, width, 1)
    residual = (flat - known.coverages[best][:, :, None] * fitted[:, None, :]).reshape(deviation.shape)
    occupied = largest_local_mean(deviation * inside) > LOCAL_RESIDUAL
    readable = (
        (largest_local_mean(residual * inside) <= LOCAL_RESIDUAL)
        & (lead.min(axis=1) >= MARGIN)
        & (distance.min(axis=1) <= COLOUR_DISTANCE)
    )
    colour = distance.argmin(axis=1)
    result: list[SceneObject | None] = []
    for i in range(batch):
        if not occupied[i]:
            result.append(None)
        elif not readable[i]:
            result.append(SceneObject(UNREADABLE, UNREADABLE, place=known.place))
        else:
            shape, size = CLASSES[winner[i]]
            result.append(SceneObject(shape, COLOURS[colour[i]], size, known.place))
    return result
