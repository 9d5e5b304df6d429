"""Frames of a video, evenly spread from the first to the last, decoded with PyAV (vilau-common[video])."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from vilau_common.data.encoder import BadSample
from vilau_common.data.sources.base import SamplesConfig
from vilau_common.errors import UserError
from vilau_common.pictures import RESAMPLING

_JPEG_QUALITY = 95


@dataclass(kw_only=True)
class FramesConfig(SamplesConfig):
    """frames: of each video. frame_size: to which pixels the shorter side of larger frames is brought."""

    frames: int = 8
    frame_size: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 1:
            raise UserError(f"source.frames is {self.frames}; a video has at least 1")
        if self.frame_size < 1:
            raise UserError(f"source.frame_size is {self.frame_size}; it has to be at least 1 pixel")


def video_decoder() -> ModuleType:
    """PyAV. Raises UserError where it is not installed."""
    try:
        import av  # nothing else needs it, and it is large
    except ImportError:
        raise UserError(
            "videos are decoded by the package av, which is not installed: pip install 'vilau-common[video]'"
        ) from None
    return av


def video_frames(path: Path, count: int, size: int) -> list[tuple[str, bytes]]:
    """(ending, content) of `count` frames as JPEG files; else as `spread_frames`."""
    return [("jpg", _jpeg(frame, size)) for frame in spread_frames(path, count)]


def spread_frames(path: Path, count: int) -> list[Image.Image]:
    """`count` frames, RGB and upright.

    Raises BadSample where the video is missing or damaged, or has fewer frames, and UserError without a decoder.
    """
    av = video_decoder()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BadSample(f"{path} holds no video")
            # What the header says of the number of frames is often wrong, and sometimes nothing.
            there = sum(1 for packet in container.demux(video=0) if packet.size)
        while there >= count:
            frames, decoded = _decoded(path, np.linspace(0, there - 1, count).round().astype(int).tolist())
            if len(frames) == count:
                return frames
            there = decoded  # not every packet was a frame
    except (OSError, av.FFmpegError) as error:
        raise BadSample(f"{path} cannot be decoded: {error}") from None
    raise BadSample(f"{path} has {there} frames, fewer than the {count} to be taken")


def _decoded(path: Path, numbers: list[int]) -> tuple[list[Image.Image], int]:
    """The frames with these numbers, upright, and how many were decoded for it."""
    frames: list[Image.Image] = []
    decoded = 0
    with video_decoder().open(str(path)) as container:
        for frame in container.decode(video=0):
            if decoded == numbers[len(frames)]:
                frames.append(frame.to_image().rotate(frame.rotation, expand=True))
            decoded += 1
            if len(frames) == len(numbers):
                break
    return frames, decoded


def _jpeg(frame: Image.Image, size: int) -> bytes:
    scale = size / min(frame.size)
    if scale < 1:
        frame = frame.resize((round(frame.width * scale), round(frame.height * scale)), RESAMPLING)
    file = io.BytesIO()
    frame.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
