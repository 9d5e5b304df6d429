"""A folder of videos, subfolders included, with captions given as `image_folder` reads them (captions.jsonl …)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import CAPTIONS, VIDEOS
from vilau_common.data.sources.base import (
    TEST,
    TRAIN,
    DocumentSample,
    SampleSource,
    Unusable,
    is_test,
    listing_fingerprint,
    require_folder,
)
from vilau_common.data.sources.image_folder import read_captions
from vilau_common.data.sources.video_frames import FramesConfig, video_decoder, video_frames
from vilau_common.errors import UserError

VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg")


@dataclass(kw_only=True)
class VideosConfig(FramesConfig):
    """Videos with captions. folder: the videos; caption_key: of caption files, where not captions, caption or text."""

    folder: str | None = None
    caption_key: str | None = None


class Videos(SampleSource):
    """See the module's docstring."""

    name = "videos"
    unit = "videos"
    noun = "videos"

    def __init__(self, config: VideosConfig) -> None:
        """Reads names and captions. Raises UserError where there are no videos or captions, or no decoder."""
        video_decoder()
        self.config = config
        self.max_bad_share = config.max_bad_share
        self.folder = require_folder("source.folder", config.folder, "videos")
        self.files = sorted(file for file in self.folder.rglob("*") if file.suffix.lower() in VIDEO_ENDINGS)
        if not self.files:
            raise UserError(f"no videos ({', '.join(VIDEO_ENDINGS)}) in {self.folder}")
        self.captions = read_captions(self.folder, self.files, config.caption_key)
        if not any(self.captions.get(file) for file in self.files):
            raise UserError(
                f"no captions for the {len(self.files):,} videos in {self.folder}, such as {self.files[0]}: give them "
                "in captions.jsonl, captions.csv or a .txt file beside each video"
            )

    def identity(self) -> dict[str, Any]:
        said = json.dumps([self.captions.get(file) for file in self.files])
        return {
            "test_share": self.config.test_share,
            "frames": self.config.frames,
            "frame_size": self.config.frame_size,
            "files": listing_fingerprint(self.folder, self.files),
            "captions": hashlib.sha256(said.encode()).hexdigest(),
        }

    def size(self) -> int:
        return len(self.files)

    def samples(self) -> Iterator[tuple[int, DocumentSample | Unusable]]:
        for number, file in enumerate(self.files, start=1):
            key = file.relative_to(self.folder).as_posix()
            said = self.captions.get(file)
            if not said:
                yield number, Unusable(key, "no caption")
                continue
            try:
                frames = video_frames(file, self.config.frames, self.config.frame_size)
            except BadSample as error:
                yield number, Unusable(key, str(error))
                continue
            split = TEST if is_test(key, self.config.test_share) else TRAIN
            yield number, DocumentSample(split, key, frames, {CAPTIONS: said, VIDEOS: [len(frames)]})
