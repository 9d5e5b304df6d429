"""Writing the frames of a video as GIF and mp4 files."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from vilau_common.data.sources.video_frames import video_decoder
from vilau_common.pictures import Picture

FRAMES_A_SECOND = 2
# Players blur what they enlarge, so small frames are written with larger pixels.
LEAST_SIDE = 144


def write_gif(path: Path, frames: Sequence[Picture], frames_a_second: int = FRAMES_A_SECOND) -> None:
    """Frames uint8 [H, W, 3] as an endless GIF."""
    first, *rest = (Image.fromarray(frame) for frame in _enlarged(frames))
    first.save(path, save_all=True, append_images=rest, duration=round(1000 / frames_a_second), loop=0)


def write_mp4(path: Path, frames: Sequence[Picture], frames_a_second: int = FRAMES_A_SECOND) -> None:
    """Frames uint8 [H, W, 3] as H.264, with PyAV. Raises UserError where that is not installed."""
    av = video_decoder()
    large = _enlarged(frames)
    height, width = (
        side - side % 2 for side in large.shape[1:3]
    )  # the format's colours have half the resolution
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_a_second))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in large[:, :height, :width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        container.mux(stream.encode())


def _enlarged(frames: Sequence[Picture]) -> Picture:
    """uint8 [F, H, W, 3] with every pixel repeated so often that the smaller side has LEAST_SIDE at least."""
    stacked = np.stack(list(frames))
    times = -(-LEAST_SIDE // min(stacked.shape[1:3]))
    return stacked.repeat(times, axis=1).repeat(times, axis=2)
