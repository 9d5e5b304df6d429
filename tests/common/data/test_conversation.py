"""Turns and placeholders: what is read, and what is refused."""

from __future__ import annotations

import pytest

from vilau_common.data.conversation import (
    Turn,
    check_places,
    read_turns,
    split_at_placeholders,
    without_placeholders,
)
from vilau_common.data.encoder import BadSample

ASK, ANSWER = {"role": "user", "text": "what?"}, {"role": "assistant", "text": "this"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a < b", ["a < b"]),
        ("<image>", ["<image>"]),
        ("<image>\nWhat is this?", ["<image>", "What is this?"]),
        ("Is  <image> a cat\n<video>", ["Is", "<image>", "a cat", "<video>"]),
        ("<image><image> <image>", ["<image>", "<image>", "<image>"]),
        ("an <IMAGE> or <images>", ["an <IMAGE> or <images>"]),
    ],
)
def test_placeholders_part_the_text(text: str, parts: list[str]) -> None:
    assert split_at_placeholders(text) == parts
    said = [part for part in parts if part not in ("<image>", "<video>")]
    assert without_placeholders(text) == " ".join(said)


def test_each_picture_needs_its_placeholder() -> None:
    check_places(["<image> a", "<video> <image>"], images=2, videos=1)
    check_places([], images=0, videos=0)
    with pytest.raises(BadSample, match="0 images, but 1 <image> in the text: each needs its own"):
        check_places(["<image>"], images=0, videos=0)
    with pytest.raises(BadSample, match="2 videos, but 1 <video>"):
        check_places(["<video>"], images=0, videos=2)


def test_turns_are_read() -> None:
    system = {"role": "system", "text": "be kind"}
    turns = [Turn("user", "what?"), Turn("assistant", "this")]
    assert read_turns({"conversation": [ASK, ANSWER]}) == turns
    assert read_turns({"conversation": [system, ASK, ANSWER, ASK, ANSWER]}) == [
        Turn("system", "be kind"),
        *turns,
        *turns,
    ]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (None, "no conversation: expected a list of turns"),
        ([], "no conversation: expected a list of turns"),
        (["what?"], "turn 1 is no object with role and text"),
        ([ASK, {"role": "assistant"}], "turn 2 is no object with role and text"),
        ([ANSWER], "turn 1 is of the role 'assistant', where 'user' is expected"),
        ([ASK, ASK], "turn 2 is of the role 'user', where 'assistant' is expected"),
        ([ASK, ANSWER, {"role": "system", "text": "a"}], "turn 3 is of the role 'system', where 'user'"),
        ([ASK, {"role": "tool", "text": "a"}], "turn 2 is of the role 'tool'"),
        ([ASK, {"role": "assistant", "text": " "}], "turn 2, of the role 'assistant', is empty"),
        ([ASK, ANSWER, ASK], "does not end with an answer"),
        ([{"role": "system", "text": "a"}], "does not end with an answer"),
    ],
)
def test_what_is_no_conversation_is_a_bad_sample(turns: object, reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        read_turns({"conversation": turns})
