"""Messages as Hugging Face's chat templates take them, as turns with their pictures and videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vilau_common.data.conversation import ASSISTANT, IMAGE, PLACEHOLDERS, SYSTEM, USER, VIDEO, Turn
from vilau_common.errors import UserError

# Where a part's picture or video may be.
KEYS = {"image": ("image", "url", "path"), "video": ("video", "url", "path")}
PLACES = {"image": IMAGE, "video": VIDEO}


@dataclass(frozen=True)
class Chat:
    """Turns with <image> and <video> where pictures stand, and these in order, not yet read."""

    turns: Sequence[Turn]
    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()


def read_messages(messages: Sequence[Mapping[str, Any]]) -> Chat:
    """{"role": …, "content": a string, or parts of type text, image and video} -> turns, images and videos.

    Raises UserError for a message of another form.
    """
    turns: list[Turn] = []
    given: dict[str, list[Any]] = {"image": [], "video": []}
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in (SYSTEM, USER, ASSISTANT):
            raise UserError(
                f"message {number} is of the role {role!r}; it is {SYSTEM}, {USER} or {ASSISTANT}"
            )
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, Sequence) or not all(isinstance(part, Mapping) for part in parts):
            raise UserError(
                f"the content of message {number} is neither a string nor a list of parts with a type"
            )
        said = ""
        for part in parts:
            kind = part.get("type")
            if kind == "text":
                words = str(part.get("text", ""))
                if any(place in words for place in PLACEHOLDERS):
                    raise UserError(
                        f"message {number} says {' or '.join(PLACEHOLDERS)}, which stand for pictures; give these as "
                        "parts of type image and video"
                    )
                said += words
                continue
            if kind not in KEYS:
                raise UserError(
                    f"message {number} has a part of type {kind!r}; the types are text, image and video"
                )
            there = [part[key] for key in KEYS[kind] if part.get(key) is not None]
            if not there:
                raise UserError(
                    f"message {number} has a part of type {kind} without its {kind}; it is under one of the keys "
                    f"{', '.join(KEYS[kind])}"
                )
            said += PLACES[kind]
            given[kind].append(there[0])
        turns.append(Turn(role, said))
    return Chat(turns, given["image"], given["video"])
