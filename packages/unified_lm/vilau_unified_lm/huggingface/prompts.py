"""Conversations -> prompts of each generation mode, by the document builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from vilau_common.data.conversation import IMAGE, USER, without_placeholders
from vilau_common.data.encoder import BadSample
from vilau_common.data.sources.video_frames import spread_frames
from vilau_common.errors import UserError
from vilau_unified_lm.document import Codes, Document
from vilau_unified_lm.huggingface.messages import Conversation, Shown
from vilau_unified_lm.vicuna import builder_of
from vilau_unified_lm.vocabulary import Vocabulary


class Prompts:
    """Writes documents whose codes are zeros: the model has the tower, and puts the pictures' codes there."""

    def __init__(
        self,
        conversation: str,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        positions: int,
        video_frames: int,
    ) -> None:
        """conversation: of `CONVERSATIONS`; positions: of a picture."""
        self.builder = builder_of(conversation, tokenizer, vocabulary)
        self.codes: Codes = np.zeros((positions, vocabulary.depth), np.int64)
        self.video_frames = video_frames

    def write(self, read: Conversation, mode: str) -> Document:
        """The prompt of a mode. Raises UserError for a conversation that is none in this mode."""
        frames = [self.codes] * self.video_frames
        images = [self.codes for shown in read.shown if shown.kind == IMAGE]
        videos = [frames for shown in read.shown if shown.kind != IMAGE]
        if mode == "text":
            return self.builder.conversation(read.turns, images, videos)
        text = read.turns[0].text
        if len(read.turns) > 1 or read.turns[0].role != USER or videos:
            raise UserError(
                f"generation_mode {mode} takes one message of the user, with no video; this conversation has "
                f"{len(read.turns)} messages and {len(videos)} videos"
            )
        if mode == "interleaved":
            return self.builder.interleaved_prompt(text, images)
        if len(images) > (mode == "image"):
            raise UserError(
                f"generation_mode {mode} takes {'one image at most' if mode == 'image' else 'no image'}, not "
                f"{len(images)}"
            )
        if images:
            return self.builder.editing_prompt(self.codes, without_placeholders(text))
        return self.builder.filming_prompt(text) if mode == "video" else self.builder.drawing_prompt(text)

    def negative(self, text: str, mode: str | None) -> Document:
        """What guidance leads away from."""
        return self.builder.filming_prompt(text) if mode == "video" else self.builder.drawing_prompt(text)


def pictures_of(read: Conversation, video_frames: int) -> list[Any]:
    """Images, and so many frames of each video, evenly spread, in the order of the conversation."""
    pictures: list[Any] = []
    for shown in read.shown:
        pictures += [shown.content] if shown.kind == IMAGE else _frames(shown, video_frames)
    return pictures


def _frames(video: Shown, count: int) -> list[Any]:
    content = video.content
    if isinstance(content, str | Path):
        try:
            return list(spread_frames(Path(content), count))
        except BadSample as error:
            raise UserError(f"the video {content} cannot be read: {error}") from None
    if not len(content):
        raise UserError("a video has at least 1 frame")
    return [content[place] for place in np.round(np.linspace(0, len(content) - 1, count)).astype(int)]
