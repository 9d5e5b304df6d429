"""Pictures and videos in every form in which people have them, as the model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import load_image

from vilau_common.data.encoder import BadSample
from vilau_common.data.sources.video_frames import spread_frames
from vilau_common.errors import UserError
from vilau_common.images import open_image
from vilau_common.pictures import Picture, fitted_square

# Addresses and inline pictures, which transformers fetches and decodes.
FETCHED = ("http://", "https://", "data:image/")


def is_image(given: Any) -> bool:
    """Whether it is one image, and not a list of several."""
    return not isinstance(given, list | tuple)


def is_video(given: Any) -> bool:
    """Whether it is one video: a file, an array of frames, or a list of pictures; a list of files is several."""
    if not isinstance(given, list | tuple):
        return True
    return (
        bool(given)
        and isinstance(given[0], Image.Image | np.ndarray | torch.Tensor)
        and _is_picture(given[0])
    )


def _is_picture(given: Any) -> bool:
    return isinstance(given, Image.Image) or given.ndim == 3


def read_image(given: Any, size: int, fit: str) -> Picture:
    """A file, a URL, a PIL picture, or an array or tensor uint8 [H, W, 3] -> uint8 [size, size, 3], square by `fit`.

    Raises UserError for anything else.
    """
    if isinstance(given, str) and given.startswith(FETCHED):
        try:
            given = load_image(given)
        except (OSError, ValueError) as error:
            raise UserError(f"no picture can be had from {given[:80]}: {error}") from None
    if isinstance(given, str | Path):
        return open_image(given, size, fit)
    if isinstance(given, Image.Image):
        given = given.convert("RGB")
    array = np.asarray(given.cpu() if isinstance(given, torch.Tensor) else given)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise UserError(
            f"an image of shape {list(array.shape)} and type {array.dtype} is given; it is a file, a URL, a PIL "
            "picture or an array of uint8 [height, width, 3]"
        )
    return fitted_square(array, size, fit)


def read_video(given: Any, size: int, fit: str, frames: int) -> Picture:
    """A video's file, or its frames as `read_image` takes them -> uint8 [n, size, size, 3], n at most `frames`.

    Of more, some are taken, evenly spread. Raises UserError for anything else, and for a file of fewer.
    """
    if isinstance(given, str | Path):
        try:
            chosen: Sequence[Any] = spread_frames(Path(given), frames)
        except BadSample as error:
            raise UserError(str(error)) from None
    elif isinstance(given, Sequence | np.ndarray | torch.Tensor) and len(given):
        places = np.linspace(0, len(given) - 1, min(frames, len(given))).round().astype(int)
        chosen = [given[place] for place in places.tolist()]
    else:
        raise UserError(f"a video is a file or a list of frames, not {type(given).__name__}")
    return np.stack([read_image(frame, size, fit) for frame in chosen])
