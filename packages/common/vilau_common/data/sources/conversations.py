"""Visual instructions as LLaVA has them: conversations about pictures, videos, or nothing but text.

    {"id": "7", "image": "coco/7.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}

`image` may be a list, of as many as there are <image> in the turns; `video` stands beside it or in its place, with
<video> (or <image>, as in LLaVA-Video, where there is no image). `messages` of {"role", "content"} are read, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vilau_common.data.conversation import (
    ASSISTANT,
    IMAGE,
    SYSTEM,
    USER,
    VIDEO,
    Turn,
    check_places,
    check_turns,
)
from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import CONVERSATION, VIDEOS
from vilau_common.data.sources.records import RecordsConfig, RecordSource
from vilau_common.data.sources.video_frames import FramesConfig, video_frames

_ROLES = {
    "system": SYSTEM,
    "human": USER,
    "user": USER,
    "gpt": ASSISTANT,
    "assistant": ASSISTANT,
}


@dataclass(kw_only=True)
class ConversationsConfig(RecordsConfig, FramesConfig):
    """LLaVA-style conversations."""


class Conversations(RecordSource):
    """See the module's docstring."""

    name = "conversations"
    noun = "conversations"

    def __init__(self, config: ConversationsConfig) -> None:
        self.config = config
        super().__init__(config)

    def identity(self) -> dict[str, Any]:
        frames = {"frames": self.config.frames, "frame_size": self.config.frame_size}
        return {**super().identity(), **frames}

    def named(self, record: dict[str, Any]) -> list[str]:
        return _files(record, "image") + _files(record, "video")

    def document(self, record: dict[str, Any]) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
        images, videos = _files(record, "image"), _files(record, "video")
        turns = _turns(record)
        if videos and not images:
            turns = [Turn(turn.role, turn.text.replace(IMAGE, VIDEO)) for turn in turns]
        check_turns(turns)
        check_places([turn.text for turn in turns], len(images), len(videos))
        pictures = [self.picture(name) for name in images]
        for name in videos:
            pictures += video_frames(self.folder / name, self.config.frames, self.config.frame_size)
        said: dict[str, Any] = {CONVERSATION: [{"role": turn.role, "text": turn.text} for turn in turns]}
        if videos:
            said[VIDEOS] = [self.config.frames] * len(videos)
        return pictures, said


def _files(record: dict[str, Any], name: str) -> list[str]:
    """The files under `name` or its plural: a text, a list of texts, or none."""
    named = record.get(name) or record.get(f"{name}s") or []
    files = [named] if isinstance(named, str) else named
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise BadSample(f"{name}: expected a file or a list of files")
    return files


def _turns(record: dict[str, Any]) -> list[Turn]:
    name, role_key, text_key = "conversations", "from", "value"
    if name not in record and "messages" in record:
        name, role_key, text_key = "messages", "role", "content"
    said = record.get(name)
    if not isinstance(said, list) or not said:
        raise BadSample(f"no {name}: expected a list of objects with {role_key} and {text_key}")
    turns = []
    for number, turn in enumerate(said, start=1):
        if not isinstance(turn, dict) or not isinstance(turn.get(text_key), str):
            raise BadSample(f"{name}: turn {number} is no object with {role_key} and {text_key}")
        role = _ROLES.get(str(turn.get(role_key)))
        if role is None:
            raise BadSample(
                f"{name}: turn {number} is from {turn.get(role_key)!r}; known are {', '.join(_ROLES)}"
            )
        turns.append(Turn(role, turn[text_key]))
    return turns
