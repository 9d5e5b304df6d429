"""Random changes of a training picture that leave its texts true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vilau_common.errors import UserError
from vilau_common.pictures import Picture, centre_square, random_square


@dataclass(kw_only=True)
class AugmentationConfig:
    """Each only where the texts do not tell.

    horizontal_flip: mirror half of the pictures; for texts that say nothing of left and right. move: shift what is
    shown by random whole pixels, as far as the plain ground around it reaches; for texts that say nothing of places.
    random_crop_scale: instead of the centre square a random part with at least this share of the picture's area
    (CLIPs: 0.9; ImageNet's classifiers: 0.08); for texts that hold for parts.
    """

    horizontal_flip: bool = False
    move: bool = False
    random_crop_scale: float | None = None

    def __post_init__(self) -> None:
        if self.random_crop_scale is not None and not 0 < self.random_crop_scale <= 1:
            raise UserError(
                f"augmentation.random_crop_scale is {self.random_crop_scale}; a share of the picture lies above 0 and "
                "is 1 at most, null takes the centre"
            )

    def any(self) -> bool:
        """Whether anything is changed at all."""
        return self.horizontal_flip or self.move or self.random_crop_scale is not None


def augmented(image: Picture, size: int, config: AugmentationConfig, rng: np.random.Generator) -> Picture:
    """uint8 [H, W, 3] of any size -> [size, size, 3], changed at random."""
    if config.random_crop_scale is None:
        image = centre_square(image, size)
    else:
        image = random_square(image, size, config.random_crop_scale, rng)
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
