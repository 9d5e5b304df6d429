"""Random changes of a training picture that leave its texts true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vilau_common.images import Picture


@dataclass(kw_only=True)
class AugmentationConfig:
    """Each only where the texts do not tell.

    horizontal_flip: mirror half of the pictures; for texts that say nothing of left and right. move: shift what is
    shown by random whole pixels, as far as the plain ground around it reaches; for texts that say nothing of places.
    """

    horizontal_flip: bool = False
    move: bool = False

    def any(self) -> bool:
        """Whether anything is changed at all."""
        return self.horizontal_flip or self.move


def augmented(image: Picture, config: AugmentationConfig, rng: np.random.Generator) -> Picture:
    """uint8 [H, W, 3] -> the same size, changed at random."""
    if config.horizontal_flip and rng.random() < 0.5:
        image = image[:, ::-1]
    return moved(image, rng) if config.move else image


def moved(image: Picture, rng: np.random.Generator) -> Picture:
    """Shifted within its plain margins: what comes in on one side is the ground that went out on the other."""
    top, bottom, left, right = plain_margins(image)
    down, across = rng.integers(-top, bottom + 1), rng.integers(-left, right + 1)
    return np.roll(image, (down, across), axis=(0, 1))


def plain_margins(image: Picture) -> tuple[int, int, int, int]:
    """How many rows at the top and bottom and columns at the left and right show nothing but the ground.

    The ground is the colour that most corners have; 0 everywhere for a picture that is nothing else.
    """
    colours, counts = np.unique(image[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0, return_counts=True)
    shown = (image != colours[counts.argmax()]).any(axis=-1)
    if not shown.any():
        return 0, 0, 0, 0
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    height, width = shown.shape
    return int(rows[0]), int(height - 1 - rows[-1]), int(columns[0]), int(width - 1 - columns[-1])
