"""Answers and captions of a model, judged by exact match and by the world's grammar."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vilau_common.data.split import Split
from vilau_common.data.worlds.base import World
from vilau_common.training.progress import TrainingProgress
from vilau_unified_lm.document import DESCRIBE

# Longer than any answer or caption of the built-in worlds.
MAX_TOKENS = 64
BATCH = 256


Read = npt.NDArray[Any]
"""A split's pictures as a model reads them: codes int64 [N, h, w, D], or pixels uint8 [N, H, W, 3]."""


class Answerer(Protocol):
    """A trained model that answers questions about pictures, each in the form that it reads."""

    def answer(self, pictures: Sequence[Read], questions: Sequence[str], max_tokens: int, /) -> list[str]:
        """The likeliest answer to each question about the picture beside it."""


@dataclass
class Written:
    picture: int  # index in the split
    question: str
    kind: str
    text: str  # what the model wrote
    expected: str
    right: bool


def answer_questions(session: Answerer, pictures: Read, split: Split, limit: int | None) -> list[Written]:
    """Every question of the split (or the first `limit`), greedily, exact match. pictures: all of the split's."""
    asked = [(picture, item) for picture, items in enumerate(split.questions) for item in items][:limit]
    texts = _write(session, pictures, [(picture, item.question) for picture, item in asked], "questions")
    return [
        Written(picture, item.question, item.kind, text, item.answer, text == item.answer)
        for (picture, item), text in zip(asked, texts, strict=True)
    ]


def caption_pictures(session: Answerer, pictures: Read, split: Split, world: World) -> list[Written]:
    """A caption for every picture whose scene is known; right if it says exactly what the picture shows."""
    known = split.known()
    texts = _write(session, pictures, [(int(picture), DESCRIBE) for picture in known], "captions")
    written = []
    for picture, text in zip(known, texts, strict=True):
        scene = split.scenes[picture]
        right = scene is not None and world.caption_right(text, scene)
        written.append(Written(int(picture), DESCRIBE, "caption", text, split.captions[picture][0], right))
    return written


def language_metrics(answers: Sequence[Written], captions: Sequence[Written]) -> dict[str, float]:
    """question_accuracy, in all and by kind, and caption_scene_accuracy."""
    right: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        for name in ("question_accuracy", f"question_accuracy/{answer.kind}"):
            right[name].append(answer.right)
    right["caption_scene_accuracy"] = [caption.right for caption in captions]
    return {name: float(np.mean(values)) for name, values in sorted(right.items()) if values}


def _write(session: Answerer, pictures: Read, asked: Sequence[tuple[int, str]], stage: str) -> list[str]:
    """Answers in the order asked. Prompts of like length go together, so that little is padding."""
    order = sorted(range(len(asked)), key=lambda index: len(asked[index][1]))
    texts = [""] * len(asked)
    with TrainingProgress(f"evaluate {stage}", len(asked), stage, visible=True) as progress:
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            answers = session.answer(
                [pictures[asked[i][0]] for i in chosen], [asked[i][1] for i in chosen], MAX_TOKENS
            )
            for index, text in zip(chosen, answers, strict=True):
                texts[index] = text
            progress.advance(start + len(chosen), len(chosen), None)
    return texts
