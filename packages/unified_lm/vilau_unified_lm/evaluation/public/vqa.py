"""VQAv2, GQA and TextVQA: questions that want a word or phrase.

vqav2     v2_OpenEnded_mscoco_<split>_questions.json, v2_mscoco_<split>_annotations.json (val2014 has one),
          <val2014|test2015>/COCO_<…>_000000000000.jpg
gqa       <split>_questions.json, images/<imageId>.jpg
textvqa   TextVQA_0.5.1_<split>.json, train_images/<image_id>.jpg (test_images for the test split)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vilau_common.errors import UserError
from vilau_unified_lm.evaluation.public.answers import bare_answer, text_vqa_answer, vqa_answer
from vilau_unified_lm.evaluation.public.files import Layout, entry, objects, read_json
from vilau_unified_lm.evaluation.public.questions import Answered, Question, QuestionSet
from vilau_unified_lm.evaluation.public.scores import means, soft_accuracy

# Splits of VQAv2, and the folder of each one's pictures.
VQAV2_SPLITS = {"val2014": "val2014", "test-dev2015": "test2015", "test2015": "test2015"}
VQAV2_WITH_ANSWERS = "val2014"
TEXTVQA_PICTURES = {"val": "train_images", "test": "test_images"}


@dataclass(kw_only=True)
class Vqav2Config:
    """directory: where the official files are. split: val2014, or test-dev2015 or test2015, whose answers only the
    server knows: submission.json is what it takes."""

    directory: str | None = None
    split: str = VQAV2_WITH_ANSWERS


@dataclass(kw_only=True)
class GqaConfig:
    """directory: where the official files are. split: the beginning of <split>_questions.json."""

    directory: str | None = None
    split: str = "testdev_balanced"


@dataclass(kw_only=True)
class TextvqaConfig:
    """directory: where the official files are. split: val, or test, whose answers only the server knows."""

    directory: str | None = None
    split: str = "val"


class Vqav2(QuestionSet):
    name: ClassVar[str] = "vqav2"

    def __init__(self, config: Vqav2Config) -> None:
        assert config.directory is not None
        _check_split("vqav2.split", config.split, VQAV2_SPLITS)
        self.split = config.split
        self.layout = Layout("vqav2.directory", Path(config.directory), "visualqa.org/download.html")

    def read(self, short_answer: str) -> list[Question]:
        file = self.layout.file(f"v2_OpenEnded_mscoco_{self.split}_questions.json")
        truths = self._truths()
        folder = VQAV2_SPLITS[self.split]
        questions = []
        for where, record in objects(read_json(file), "questions", file):
            number = entry(record, "question_id", int, where)
            if truths is not None and number not in truths:
                raise UserError(f"{where}: question {number} has no annotation")
            kind, answers = (truths or {}).get(number, ("", None))
            picture = f"COCO_{folder}_{entry(record, 'image_id', int, where):012d}.jpg"
            text = entry(record, "question", str, where) + short_answer
            questions.append(
                Question(str(number), self.layout.directory / folder / picture, text, kind, answers)
            )
        self.layout.check_pictures(question.picture for question in questions)
        return questions

    def score(self, text: str, question: Question) -> float | None:
        if question.truth is None:
            return None
        return soft_accuracy(vqa_answer(text), [vqa_answer(truth) for truth in question.truth])

    def numbers(self, answered: Sequence[Answered]) -> dict[str, float]:
        return _accuracies(answered)

    def submission(self, answered: Sequence[Answered]) -> Any | None:
        if self.split == VQAV2_WITH_ANSWERS:
            return None
        return [{"question_id": int(item.question.id), "answer": vqa_answer(item.text)} for item in answered]

    def _truths(self) -> dict[int, tuple[str, list[str]]] | None:
        """Answer type and people's answers by question."""
        if self.split != VQAV2_WITH_ANSWERS:
            return None
        file = self.layout.file(f"v2_mscoco_{self.split}_annotations.json")
        truths = {}
        for where, record in objects(read_json(file), "annotations", file):
            given = [entry(item, "answer", str, where) for item in entry(record, "answers", list, where)]
            if not given:
                raise UserError(f"{where}: it has no answers")
            number = entry(record, "question_id", int, where)
            truths[number] = (entry(record, "answer_type", str, where), given)
        return truths


class Gqa(QuestionSet):
    name: ClassVar[str] = "gqa"

    def __init__(self, config: GqaConfig) -> None:
        assert config.directory is not None
        self.split = config.split
        source = "cs.stanford.edu/people/dorarad/gqa/download.html"
        self.layout = Layout("gqa.directory", Path(config.directory), source)

    def read(self, short_answer: str) -> list[Question]:
        file = self.layout.file(f"{self.split}_questions.json")
        records = read_json(file)
        if not isinstance(records, dict) or not records:
            raise UserError(f"{file}: expected an object with a question for each id")
        questions = []
        for id_, record in records.items():
            where = f"{file}, question {id_}"
            types = record.get("types") if isinstance(record, dict) else None
            questions.append(
                Question(
                    id_,
                    self.layout.directory / "images" / f"{entry(record, 'imageId', str, where)}.jpg",
                    entry(record, "question", str, where) + short_answer,
                    str(types.get("structural", "")) if isinstance(types, dict) else "",
                    entry(record, "answer", str, where),
                )
            )
        self.layout.check_pictures(question.picture for question in questions)
        return questions

    def score(self, text: str, question: Question) -> float | None:
        return float(bare_answer(text) == bare_answer(question.truth))

    def numbers(self, answered: Sequence[Answered]) -> dict[str, float]:
        return _accuracies(answered)


class Textvqa(QuestionSet):
    name: ClassVar[str] = "textvqa"

    def __init__(self, config: TextvqaConfig) -> None:
        assert config.directory is not None
        _check_split("textvqa.split", config.split, TEXTVQA_PICTURES)
        self.split = config.split
        self.layout = Layout("textvqa.directory", Path(config.directory), "textvqa.org/dataset")

    def read(self, short_answer: str) -> list[Question]:
        file = self.layout.file(f"TextVQA_0.5.1_{self.split}.json")
        folder = self.layout.directory / TEXTVQA_PICTURES[self.split]
        questions = []
        for where, record in objects(read_json(file), "data", file):
            answers = None
            if self.split != "test":
                answers = [str(answer) for answer in entry(record, "answers", list, where)]
                if not answers:
                    raise UserError(f"{where}: it has no answers")
            # The questions are lower-case; LLaVA and lmms-eval begin them with a capital letter.
            text = entry(record, "question", str, where).capitalize() + short_answer
            picture = folder / f"{entry(record, 'image_id', str, where)}.jpg"
            number = str(entry(record, "question_id", int, where))
            questions.append(Question(number, picture, text, "", answers))
        self.layout.check_pictures(question.picture for question in questions)
        return questions

    def score(self, text: str, question: Question) -> float | None:
        if question.truth is None:
            return None
        return soft_accuracy(text_vqa_answer(text), [text_vqa_answer(truth) for truth in question.truth])

    def numbers(self, answered: Sequence[Answered]) -> dict[str, float]:
        return _accuracies(answered)

    def submission(self, answered: Sequence[Answered]) -> Any | None:
        if self.split != "test":
            return None
        return [
            {"question_id": int(item.question.id), "answer": text_vqa_answer(item.text)} for item in answered
        ]


def _accuracies(answered: Sequence[Answered]) -> dict[str, float]:
    """accuracy, and that of each kind; nothing where only a server knows the answers."""
    return means(
        ((item.question.kind, item.score) for item in answered if item.score is not None), "accuracy"
    )


def _check_split(setting: str, split: str, known: dict[str, str]) -> None:
    if split not in known:
        raise UserError(f"{setting} is {split!r}; it is one of {', '.join(known)}")
