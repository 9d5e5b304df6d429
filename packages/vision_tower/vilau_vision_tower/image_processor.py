"""The tower's pictures as a Hugging Face image processor: squares of its size, in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from vilau_common.errors import UserError
from vilau_common.images import open_image, to_tensor
from vilau_common.pictures import FITS, Picture, as_seen, fitted_square

AnyPicture = Image.Image | Picture | str | Path


class VisionTowerImageProcessor(BaseImageProcessor):
    """image_size: side of the squares, in pixels. image_fit: how a picture becomes one, see `FITS`."""

    model_input_names = ["pixel_values"]

    def __init__(self, image_size: int = 256, image_fit: str = "crop", **kwargs: Any) -> None:
        """kwargs: what transformers stores beside. Raises UserError for an image_fit that does not exist."""
        super().__init__(**kwargs)
        if image_fit not in FITS:
            raise UserError(f"image_fit is {image_fit!r}; it is one of {', '.join(FITS)}")
        self.image_size, self.image_fit = image_size, image_fit

    def preprocess(
        self, images: AnyPicture | Sequence[AnyPicture], return_tensors: str = "pt"
    ) -> BatchFeature:
        """One picture or several -> pixel_values float32 [B, 3, S, S] in [-1, 1].

        A picture is of PIL, a file's path, or uint8 [H, W, 3]. Raises UserError for anything else, and for a file that
        cannot be read.
        """
        several: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
        pixels = to_tensor(np.stack([self.square(image) for image in several]))
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def square(self, image: AnyPicture) -> Picture:
        """One picture as uint8 [S, S, 3]; raises what `preprocess` does."""
        if isinstance(image, str | Path):
            return open_image(image, self.image_size, self.image_fit)
        if isinstance(image, Image.Image):
            image = np.asarray(as_seen(image.copy()))
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,)):
            what = f"{image.dtype} {list(image.shape)}" if hasattr(image, "shape") else type(image).__name__
            raise UserError(f"a picture is of PIL, a file's path, or uint8 [H, W, 3]; {what} is none")
        return fitted_square(image, self.image_size, self.image_fit)
