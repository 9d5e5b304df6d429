"""The tab that chats about pictures and videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gradio as gr

from vilau_common.data.conversation import USER
from vilau_unified_lm.app.mistakes import told
from vilau_unified_lm.app.studio import Message, Studio
from vilau_unified_lm.evaluation.language import MAX_TOKENS

MOST_FRAMES = 32
FRAMES = 8  # VILA-U's
MOST_TOKENS = 1024
HEIGHT = "55vh"


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
        with told():
            yield from studio.reply(
                [*messages(history), new], max_tokens=int(max_tokens), frames=int(frames), together=whole
            )

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
    """Gradio's history, messages of parts, as messages.

    A message that was refused has no answer and is left out: it would be refused again each time.
    """
    found: list[Message] = []
    for entry, following in pairwise([*history, None]):
        assert entry is not None
        if entry["role"] == USER and (following is None or following["role"] == USER):
            continue
        texts = [part["text"] for part in entry["content"] if part["type"] == "text"]
        files = [Path(part["file"]["path"]) for part in entry["content"] if part["type"] != "text"]
        found.append(Message(entry["role"], "\n".join(filter(None, texts)), tuple(files)))
    return found
