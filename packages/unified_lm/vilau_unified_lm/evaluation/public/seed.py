"""SEED-Bench (Li et al. 2023): multiple choice among four, questions about pictures; those about videos are left out.

seed_bench   SEED-Bench.json, SEED-Bench-image/<data_id>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vilau_common.errors import UserError
from vilau_unified_lm.evaluation.public.answers import letter_answer
from vilau_unified_lm.evaluation.public.files import Layout, entry, objects, read_json
from vilau_unified_lm.evaluation.public.questions import Answered, Question, QuestionSet
from vilau_unified_lm.evaluation.public.scores import means

LETTERS = "ABCD"
LETTER_INSTRUCTION = "Answer with the option's letter from the given choices directly."
LETTER, LIKELIHOOD = WAYS = ("letter", "likelihood")


@dataclass(kw_only=True)
class SeedConfig:
    """directory: where the official files are. answer: letter, the model sees the options and writes a letter (as
    LLaVA and VILA are evaluated); or likelihood, the option that is likeliest as the answer to the bare question (as
    SEED-Bench's own evaluation)."""

    directory: str | None = None
    answer: str = LETTER


class Seed(QuestionSet):
    name: ClassVar[str] = "seed_bench"

    def __init__(self, config: SeedConfig) -> None:
        assert config.directory is not None
        if config.answer not in WAYS:
            raise UserError(f"seed_bench.answer is {config.answer!r}; it is {' or '.join(WAYS)}")
        self.answer = config.answer
        source = "huggingface.co/datasets/AILab-CVC/SEED-Bench"
        self.layout = Layout("seed_bench.directory", Path(config.directory), source)
        self.videos = 0  # questions left out

    def read(self, short_answer: str) -> list[Question]:
        file = self.layout.file("SEED-Bench.json")
        content = read_json(file)
        kinds = {number: name for name, number in entry(content, "question_type", dict, str(file)).items()}
        questions = []
        for where, record in objects(content, "questions", file):
            if entry(record, "data_type", str, where) != "image":
                self.videos += 1
                continue
            answer = entry(record, "answer", str, where)
            if len(answer) != 1 or answer not in LETTERS:
                raise UserError(f"{where}: the answer is {answer!r}, not one of {', '.join(LETTERS)}")
            choices = tuple(str(record.get(f"choice_{letter.lower()}", "")) for letter in LETTERS)
            if not all(choices):
                raise UserError(f"{where}: expected choice_a to choice_d")
            asked = entry(record, "question", str, where)
            if self.answer == LETTER:
                options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
                asked, choices = "\n".join([asked, *options, LETTER_INSTRUCTION]), ()
            questions.append(
                Question(
                    str(record.get("question_id", where)),
                    self.layout.directory / "SEED-Bench-image" / entry(record, "data_id", str, where),
                    asked,
                    str(kinds.get(record.get("question_type_id"), "")),
                    answer,
                    choices,
                )
            )
        if not questions:
            raise UserError(f"{file}: it has no questions about pictures")
        self.layout.check_pictures(question.picture for question in questions)
        return questions

    def score(self, text: str, question: Question) -> float | None:
        return float(letter_answer(text, LETTERS) == question.truth)

    def numbers(self, answered: Sequence[Answered]) -> dict[str, float]:
        scores = [(item.question.kind, float(item.score == 1)) for item in answered]
        return {**means(scores, "accuracy"), "video_questions_left_out": self.videos}
