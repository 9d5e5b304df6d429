"""Pictures inside the page: data URIs."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vilau_common.errors import UserError

# Up to this side a picture's pixels are shown as squares; larger pictures are scaled smoothly.
LARGEST_PIXELATED_SIDE = 96


@dataclass(frozen=True)
class InlinePicture:
    """A picture as an <img> takes it."""

    uri: str
    pixelated: bool


def inline_picture(path: Path) -> InlinePicture:
    """The file, unchanged, as a data URI. Raises UserError if it is no picture."""
    try:
        with Image.open(path) as picture:
            side, mime_type = max(picture.size), Image.MIME[picture.format or ""]
    except (OSError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a picture: {error}") from None
    return InlinePicture(data_uri(mime_type, path.read_bytes()), pixelated=side <= LARGEST_PIXELATED_SIDE)


def data_uri(mime_type: str, contents: bytes) -> str:
    """The contents as an address that needs no other file."""
    return f"data:{mime_type};base64,{base64.b64encode(contents).decode('ascii')}"
