"""Files that people upload, as frames that the model reads: one of a picture, several of a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vilau_common.data.encoder import BadSample
from vilau_common.data.sources.video_frames import spread_frames
from vilau_common.data.sources.videos import VIDEO_ENDINGS
from vilau_common.errors import UserError
from vilau_common.images import open_image
from vilau_common.pictures import Picture, centre_square


@dataclass(frozen=True)
class Upload:
    """frames: uint8 [1, H, W, 3] of a picture, [frames, H, W, 3] of a video."""

    frames: Picture
    video: bool


def read_upload(path: Path, size: int, frames: int) -> Upload:
    """A picture or video file, the centre square brought to size x size. frames: to take of a video, evenly spread.

    Raises UserError for a file that is neither, and for a video with fewer frames.
    """
    if not is_video(path):
        return Upload(read_picture(path, size)[None], video=False)
    try:
        taken = spread_frames(path, frames)
    except BadSample as error:
        raise _without_place(error, path) from None
    return Upload(np.stack([centre_square(np.asarray(frame), size) for frame in taken]), video=True)


def read_picture(path: Path, size: int) -> Picture:
    """A picture file, the centre square brought to size x size, uint8 [H, W, 3]. Raises UserError for no picture."""
    try:
        return open_image(path, size)
    except UserError as error:
        raise _without_place(error, path) from None


def _without_place(error: Exception, path: Path) -> UserError:
    """Where the server keeps a file is not for the page."""
    return UserError(str(error).replace(str(path), path.name))


def is_video(path: Path) -> bool:
    """By its ending; a GIF is one where it moves."""
    if path.suffix.lower() != ".gif":
        return path.suffix.lower() in VIDEO_ENDINGS
    try:
        with Image.open(path) as picture:
            return bool(getattr(picture, "is_animated", False))
    except OSError:
        return False  # `open_image` says what is wrong with it
