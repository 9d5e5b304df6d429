"""Access to the files of the PyPI package `easy-vqa`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from vilau_common.errors import UserError


@dataclass(frozen=True)
class Picture:
    """One picture of the package and its question-answer pairs, in the package's order."""

    identifier: int
    path: Path
    pairs: tuple[tuple[str, str], ...]

    def load(self, image_size: int) -> npt.NDArray[np.uint8]:
        """The picture as uint8 [image_size, image_size, 3].

        Box filtering averages over each new pixel's area: no ringing around the shape, unlike Lanczos.
        """
        with Image.open(self.path) as image:
            resized = image.convert("RGB").resize((image_size, image_size), Image.Resampling.BOX)
        return np.asarray(resized)


def pictures(split: str) -> list[Picture]:
    """All pictures of the package's "train" or "test" split, by identifier.

    Raises UserError if the package is not installed.
    """
    try:
        import easy_vqa  # not needed by any other world, so not a hard dependency of importing this module
    except ImportError as error:
        raise UserError(
            "the easy_vqa world needs the package easy-vqa, which is not installed: `pip install easy-vqa`"
        ) from error
    readers = {
        "train": (easy_vqa.get_train_image_paths, easy_vqa.get_train_questions),
        "test": (easy_vqa.get_test_image_paths, easy_vqa.get_test_questions),
    }
    get_paths, get_questions = readers[split]
    pairs: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, identifier in zip(*get_questions(), strict=True):
        pairs[identifier].append((question, answer))
    return [
        Picture(identifier, Path(path), tuple(pairs[identifier]))
        for identifier, path in sorted(get_paths().items())
    ]
