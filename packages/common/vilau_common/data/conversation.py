"""Conversations: turns of a user and an assistant, with placeholders where their pictures and videos stand.

<image> and <video> in a turn's text are LLaVA's way to say where. White space around them means nothing: the tokens
around a picture set it apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vilau_common.data.encoder import BadSample

IMAGE, VIDEO = PLACEHOLDERS = ("<image>", "<video>")
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"

_PLACE = re.compile(r"\s*(<image>|<video>)\s*")


@dataclass(frozen=True)
class Turn:
    role: str  # SYSTEM, in the first turn only, USER or ASSISTANT
    text: str


def split_at_placeholders(text: str) -> list[str]:
    """'Is <image> a cat?' -> ['Is', '<image>', 'a cat?']; without empty parts."""
    if "<" not in text:
        return [text] if text else []
    return [part for part in _PLACE.split(text) if part]


def without_placeholders(text: str) -> str:
    """The text alone, its parts parted by a space."""
    return " ".join(part for part in split_at_placeholders(text) if part not in PLACEHOLDERS)


def check_places(texts: Iterable[str], images: int, videos: int) -> None:
    """Raises BadSample unless `texts` have as many placeholders as there are images and videos."""
    parts = [part for text in texts for part in split_at_placeholders(text)]
    for placeholder, what, there in ((IMAGE, "image", images), (VIDEO, "video", videos)):
        places = parts.count(placeholder)
        if places != there:
            raise BadSample(
                f"{there} {what}{'' if there == 1 else 's'}, but {places} {placeholder} in the text: each needs its own"
            )


def read_turns(record: Mapping[str, Any], name: str = "conversation") -> list[Turn]:
    """The turns of a stored sample, `record[name]`: [{"role": "user", "text": "…"}, {"role": "assistant", …}, …].

    Raises BadSample where they are none, of other types, empty, or not question and answer by turns.
    """
    stored = record.get(name)
    if not isinstance(stored, list) or not stored:
        raise BadSample(f"no {name}: expected a list of turns")
    turns = []
    for number, turn in enumerate(stored, start=1):
        role, text = (turn.get("role"), turn.get("text")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(text, str):
            raise BadSample(f"{name}: turn {number} is no object with role and text")
        turns.append(Turn(role, text))
    check_turns(turns)
    return turns


def check_turns(turns: list[Turn]) -> None:
    """Raises BadSample unless user and assistant take turns (a system's may come first), and each says something."""
    first = 1 if turns and turns[0].role == SYSTEM else 0
    for number, turn in enumerate(turns, start=1):
        expected = SYSTEM if number <= first else (USER, ASSISTANT)[(number - first - 1) % 2]
        if turn.role != expected:
            raise BadSample(f"turn {number} is of the role {turn.role!r}, where {expected!r} is expected")
        if not turn.text.strip():
            raise BadSample(f"turn {number}, of the role {turn.role!r}, is empty")
    if not turns or turns[-1].role != ASSISTANT:
        raise BadSample("the conversation does not end with an answer")
