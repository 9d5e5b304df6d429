"""Pictures at the edges of the code: uint8 arrays outside, float tensors in [-1, 1] inside, and sheets to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vilau_common.errors import UserError
from vilau_common.pictures import Picture as Picture  # used beside the functions here
from vilau_common.pictures import PictureError, fitted_square, read_picture

# The smallest side at which a small picture is shown: below that a person sees a smudge.
SHOWN_SIDE = 96


def to_tensor(images: Picture) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return from_pixels(torch.from_numpy(np.require(images, requirements=["C", "W"])))


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, 3], on any device -> float32 [B, 3, H, W] in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_array(images: Tensor) -> Picture:
    """float [B, 3, H, W] in [-1, 1] (values outside are cut) -> uint8 [B, H, W, 3]."""
    scaled = ((images.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255)
    array: Picture = scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return array


def open_image(path: Path | str, size: int, fit: str = "crop") -> Picture:
    """A picture file as uint8 [size, size, 3], made square as `fit` says (`FITS`). Raises UserError if it is none."""
    try:
        return fitted_square(read_picture(Path(path).read_bytes()), size, fit)
    except FileNotFoundError:
        raise UserError(f"there is no picture {path}") from None
    except (OSError, PictureError) as error:
        raise UserError(f"{path} cannot be read as a picture: {error}") from None


def enlarged(image: Picture) -> Image.Image:
    """uint8 [H, W, 3] -> a picture whose pixels are repeated until a person can see them."""
    picture = Image.fromarray(image)
    factor = max(1, -(-SHOWN_SIDE // min(picture.size)))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def sheet(rows: Sequence[Sequence[Picture]], gap: int = 4) -> Image.Image:
    """Pictures of one size, row by row, on a white sheet."""
    tiles = [[enlarged(image) for image in row] for row in rows]
    width, height = tiles[0][0].size
    columns = max(len(row) for row in tiles)
    page = Image.new("RGB", (columns * (width + gap) + gap, len(tiles) * (height + gap) + gap), "white")
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            page.paste(tile, (gap + x * (width + gap), gap + y * (height + gap)))
    return page
