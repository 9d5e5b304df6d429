"""What every public set of questions about pictures is: it reads its official files, and judges answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

# Longer than any answer of one word or phrase.
MAX_TOKENS = 16


@dataclass(frozen=True)
class Question:
    """id: unlike all others of the set. text: as the model is asked. kind: of the data set's own kinds, "" for none.

    truth: what the set's `score` compares with, of JSON's types. choices: texts of which the likeliest is the answer;
    without any, the model writes one.
    """

    id: str
    picture: Path
    text: str
    kind: str
    truth: Any
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answered:
    question: Question
    text: str  # what the model wrote; of choices, the letter of the likeliest
    score: float | None  # in 0..1; None where the truth is not public


class QuestionSet(ABC):
    """A public data set of questions about pictures."""

    name: ClassVar[str]
    max_tokens: ClassVar[int] = MAX_TOKENS

    @abstractmethod
    def read(self, short_answer: str) -> list[Question]:
        """All questions; short_answer: what is put behind each that wants a word or phrase.

        Raises UserError for files or pictures that are missing or malformed.
        """

    @abstractmethod
    def score(self, text: str, question: Question) -> float | None:
        """How right an answer is, in 0..1; None where nobody knows."""

    @abstractmethod
    def numbers(self, answered: Sequence[Answered]) -> dict[str, float]:
        """The data set's own numbers, of one answer at least."""

    def submission(self, answered: Sequence[Answered]) -> Any | None:
        """What the data set's server takes, of JSON's types; None where the truth is public."""
        return None
