"""Messages as transformers' chats have them -> turns with placeholders, and the pictures that stand there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vilau_common.data.conversation import (
    ASSISTANT,
    IMAGE,
    PLACEHOLDERS,
    SYSTEM,
    USER,
    VIDEO,
    Turn,
    split_at_placeholders,
)
from vilau_common.errors import UserError
from vilau_vision_tower.image_processor import AnyPicture

ROLES = (SYSTEM, USER, ASSISTANT)


@dataclass(frozen=True)
class Shown:
    """An image, or a video: its frames or its file."""

    kind: str  # IMAGE or VIDEO
    content: Any


@dataclass(frozen=True)
class Conversation:
    turns: list[Turn]  # with <image> and <video> where something is shown
    shown: list[Shown]  # in that order

    @property
    def draws(self) -> bool:
        """Whether a drawing can be asked for so: one message of the user, with one image at most."""
        alone = len(self.turns) == 1 and self.turns[0].role == USER
        return alone and [shown.kind for shown in self.shown] in ([], [IMAGE])


def read_messages(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Raises UserError for what is no conversation."""
    turns: list[Turn] = []
    shown: list[Shown] = []
    for number, message in enumerate(messages, start=1):
        role = message.get("role")
        content = message.get("content")
        if role not in ROLES or not isinstance(content, str | list | tuple):
            raise UserError(
                f"message {number} is none: it has a role ({', '.join(ROLES)}) and content, a text or a list of parts"
            )
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = ""
        for part in parts:
            kind = part.get("type")
            if kind == "text" and not set(split_at_placeholders(part.get("text", ""))) & set(PLACEHOLDERS):
                text += part.get("text", "")
            elif kind in ("image", "video"):
                place = IMAGE if kind == "image" else VIDEO
                found = [part[key] for key in (kind, "path", "url") if part.get(key) is not None]
                if not found:
                    raise UserError(f"message {number} has an {kind} part without its {kind!r}, path or url")
                text += place
                shown.append(Shown(place, found[0]))
            else:
                raise UserError(
                    f"message {number} has a part of type {kind!r}; a part is text (without <image> and <video>), "
                    "image or video"
                )
        turns.append(Turn(role, text))
    if not turns:
        raise UserError("a conversation has at least one message")
    return Conversation(turns, shown)


def messages_of(
    text: str | Sequence[str], images: Any = None, videos: Any = None
) -> list[list[dict[str, Any]]]:
    """Texts with their pictures, as `UnifiedLMProcessor.__call__` takes them, each as one message of the user."""
    texts = [text] if isinstance(text, str) else list(text)
    if isinstance(text, str):
        images, videos = [images], [videos]
    every: dict[str, list[list[AnyPicture]]] = {}
    for kind, given in (("image", images), ("video", videos)):
        entries = [None] * len(texts) if given is None else list(given)
        if len(entries) != len(texts):
            raise UserError(
                f"{len(texts)} texts came with {len(entries)} entries of {kind}s; give one for each"
            )
        every[kind] = [_several(entry, kind) for entry in entries]
    return [
        [{"role": USER, "content": _parts(one, every["image"][number], every["video"][number])}]
        for number, one in enumerate(texts)
    ]


def _parts(text: str, images: list[Any], videos: list[Any]) -> list[dict[str, Any]]:
    said = split_at_placeholders(text)
    waiting = {IMAGE: images, VIDEO: videos}
    for place, given in waiting.items():
        placed = said.count(place)
        if placed and placed != len(given):
            raise UserError(f"a text says {place} {placed} times, but comes with {len(given)}")
        if not placed:
            said = [place] * len(given) + said
    kinds = {IMAGE: "image", VIDEO: "video"}
    iterators = {place: iter(given) for place, given in waiting.items()}
    return [
        {"type": kinds[part], kinds[part]: next(iterators[part])}
        if part in kinds
        else {"type": "text", "text": part}
        for part in said
    ]


def _several(entry: Any, kind: str) -> list[Any]:
    """The pictures of one text: an entry that is None, one of them, or a list of them."""
    if entry is None:
        return []
    if not isinstance(entry, list | tuple):
        return [entry]
    frames = kind == "video" and all(
        isinstance(one, Image.Image) or (isinstance(one, np.ndarray) and one.ndim == 3) for one in entry
    )
    return [entry] if frames else list(entry)
