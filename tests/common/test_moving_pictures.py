from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilau_common.moving_pictures import write_gif, write_mp4

COLOURS = ((220, 30, 30), (30, 160, 60), (30, 60, 220))
FRAMES = [np.full((9, 11, 3), colour, np.uint8) for colour in COLOURS]


def test_gif_has_every_frame(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", FRAMES, frames_a_second=4)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 3  # type: ignore[attr-defined]
        assert film.info["duration"] == 250 and film.info["loop"] == 0
        assert film.size == (16 * 11, 16 * 9)
        for number, colour in enumerate(COLOURS):
            film.seek(number)
            assert film.convert("RGB").getpixel((5, 5)) == colour


def test_mp4_has_every_frame(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    write_mp4(tmp_path / "a.mp4", FRAMES)
    with av.open(str(tmp_path / "a.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert film.streams.video[0].average_rate == 2
    assert len(frames) == 3
    for frame, colour in zip(frames, COLOURS, strict=True):
        assert frame.shape == (16 * 9, 16 * 11, 3)
        assert np.abs(frame.reshape(-1, 3).mean(axis=0) - colour).max() < 6
