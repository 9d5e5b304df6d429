"""The tab that chats about pictures and videos."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gradio as gr

from vilau_common.data.conversation import USER
from vilau_common.errors import UserError
from vilau_unified_lm.app.studio import Message, Studio
from vilau_unified_lm.evaluation.language import MAX_TOKENS

MOST_FRAMES = 32
FRAMES = 8  # VILA-U's
MOST_TOKENS = 1024
HEIGHT = "55vh"
REFUSED = "⚠ "  # an answer that begins so is a mistake told, not the model's


def chat_tab(studio: Studio, together: bool) -> None:
    """together: whether it begins as one conversation."""

    def answer(
        message: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        whole: bool,
        frames: float,
        max_tokens: float,
    ) -> Iterator[str]:
        """Answers a message about the pictures and videos in it, or in an earlier one."""
        new = Message(USER, message["text"], tuple(Path(file) for file in message["files"]))
        try:
            yield from studio.reply(
                [*messages(history), new], max_tokens=int(max_tokens), frames=int(frames), together=whole
            )
        except UserError as error:
            # Raised, it would hide the chat and lock its text box. Answers are Markdown, which would swallow <image>.
            yield REFUSED + html.escape(str(error), quote=False)

    # The interface places its parts itself; what is made in place would stand above it.
    gr.ChatInterface(
        answer,
        multimodal=True,
        chatbot=gr.Chatbot(label="Chat", height=HEIGHT, buttons=["copy"], render=False),
        textbox=gr.MultimodalTextbox(
            placeholder="Add a picture or a video and ask about it",
            file_types=["image", "video"],
            file_count="multiple",
            show_label=False,
            render=False,
        ),
        additional_inputs=[
            gr.Checkbox(
                together,
                label="One conversation",
                info="Earlier messages count. Off: each question stands alone, about the newest pictures",
                render=False,
            ),
            gr.Slider(
                1,
                MOST_FRAMES,
                FRAMES,
                step=1,
                label="Frames",
                info="Taken of a video, evenly spread",
                render=False,
            ),
            gr.Slider(
                1, MOST_TOKENS, MAX_TOKENS, step=1, label="Longest answer", info="In tokens", render=False
            ),
        ],
        additional_inputs_accordion=gr.Accordion("Settings", open=False, render=False),
        analytics_enabled=False,
        api_name="chat",
    )


def messages(history: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Gradio's history as messages, without those that were refused or got no answer: they would be refused again."""
    every = [_message(entry) for entry in history]
    found: list[Message] = []
    for message, following in pairwise([*every, None]):
        assert message is not None
        answer = following if message.role == USER else message
        if answer is not None and answer.role != USER and not answer.text.startswith(REFUSED):
            found.append(message)
    return found


def _message(entry: Mapping[str, Any]) -> Message:
    # A program's history has plain texts and {"path": …}, the page's has typed parts.
    parts = [entry["content"]] if isinstance(entry["content"], str) else entry["content"]
    texts, files = [], []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif "text" in part:
            texts.append(part["text"])
        else:
            files.append(Path(part.get("file", part)["path"]))
    return Message(entry["role"], "\n".join(texts), tuple(files))
