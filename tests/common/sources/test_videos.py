"""Videos: which frames are taken, how they are stored, and what is refused."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_toys import run_prepare_documents, write_lines, write_video

from vilau_common.data.encoder import BadSample
from vilau_common.data.sources.base import Unusable
from vilau_common.data.sources.video_frames import video_frames
from vilau_common.data.sources.videos import Videos, VideosConfig
from vilau_common.errors import UserError


def opened(frames: list[tuple[str, bytes]]) -> list[Image.Image]:
    assert {ending for ending, _ in frames} == {"jpg"}
    return [Image.open(io.BytesIO(content)) for _, content in frames]


def brightness(frames: list[tuple[str, bytes]]) -> list[float]:
    return [float(np.asarray(frame).mean()) for frame in opened(frames)]


@pytest.mark.parametrize(("codec", "ending"), [("mpeg4", "mp4"), ("mpeg4", "avi"), ("mpeg2video", "mpg")])
def test_frames_are_spread_from_the_first_to_the_last(tmp_path: Path, codec: str, ending: str) -> None:
    video = write_video(tmp_path / f"a.{ending}", 26, codec=codec)
    taken = brightness(video_frames(video, 6, 512))
    assert taken == pytest.approx([0, 50, 100, 150, 200, 250], abs=6)
    assert brightness(video_frames(video, 1, 512)) == pytest.approx([0], abs=6)
    assert brightness(video_frames(video, 26, 512)) == pytest.approx([10 * n for n in range(26)], abs=6)


def test_large_frames_are_reduced_and_small_ones_left(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", 3, side=64)
    assert {frame.size for frame in opened(video_frames(video, 2, 16))} == {(32, 16)}
    assert {frame.size for frame in opened(video_frames(video, 2, 65))} == {(128, 64)}


def test_a_telephones_video_stands_upright(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", 3, side=16, rotation=90)
    assert {frame.size for frame in opened(video_frames(video, 2, 512))} == {(16, 32)}


def test_videos_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    short = write_video(tmp_path / "a.mp4", 4)
    with pytest.raises(BadSample, match="a.mp4 has 4 frames, fewer than the 5 to be taken"):
        video_frames(short, 5, 512)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    (tmp_path / "c.mp4").write_bytes(write_video(tmp_path / "d.mp4", 30).read_bytes()[:200])
    for name in ("b.mp4", "c.mp4", "nowhere.mp4"):
        with pytest.raises(BadSample, match=f"{name} cannot be decoded"):
            video_frames(tmp_path / name, 2, 512)


def test_a_folder_of_videos_with_captions(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    for number in range(12):
        write_video(folder / f"deep/{number:02d}.mp4", 5)
    write_video(folder / "short.MP4", 2)
    said = [{"file_name": f"deep/{n:02d}.mp4", "text": f"clip {n}"} for n in range(11)]
    write_lines(folder / "captions.jsonl", [*said, {"file_name": "short.MP4", "text": "too short"}])
    config = VideosConfig(folder=str(folder), frames=3, test_share=0.4, max_bad_share=0.2)
    found = run_prepare_documents(config, tmp_path / "data", vocabulary_size=300)
    assert found.keys() == {"train", "test"} and sum(map(len, found.values())) == 11
    for stored in [*found["train"], *found["test"]]:
        assert stored.record["captions"] == [f"clip {int(stored.record['key'][5:7])}"]
        assert (stored.record["videos"], stored.record["pictures"]) == ([3], 3)
        assert list(stored.pictures) == ["0.jpg", "1.jpg", "2.jpg"]
        assert brightness([("jpg", content) for content in stored.pictures.values()]) == pytest.approx(
            [0, 125, 250], abs=6
        )
    unusable = {one.key: one.reason for _, one in Videos(config).samples() if isinstance(one, Unusable)}
    assert unusable.keys() == {"deep/11.mp4", "short.MP4"} and unusable["deep/11.mp4"] == "no caption"


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="source.folder is not set; give the folder of your videos"):
        Videos(VideosConfig())
    with pytest.raises(UserError, match="no videos .* in "):
        Videos(VideosConfig(folder=str(tmp_path)))
    write_video(tmp_path / "a.mp4", 2)
    with pytest.raises(UserError, match="no captions for the 1 videos in "):
        Videos(VideosConfig(folder=str(tmp_path)))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        UserError, match=r"the package av, which is not installed: pip install 'vilau-common\[video\]'"
    ):
        Videos(VideosConfig(folder=str(tmp_path)))
