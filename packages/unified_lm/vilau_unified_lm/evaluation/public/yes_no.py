"""POPE (Li et al. 2023) and MME (Fu et al. 2023): questions of yes or no.

pope   coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json (JSON lines),
       val2014/COCO_val2014_000000000000.jpg
mme    <category>/<picture>.jpg|png and <picture>.txt, or in <category>/images and <category>/questions_answers_YN;
       of each picture two lines, question<tab>Yes|No
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from vilau_common.errors import UserError
from vilau_unified_lm.evaluation.public.answers import mme_answer, pope_answer
from vilau_unified_lm.evaluation.public.files import Layout, entry, read_json_lines
from vilau_unified_lm.evaluation.public.questions import Answered, Question, QuestionSet
from vilau_unified_lm.evaluation.public.scores import YesNo, paired_accuracy

YES_NO = ("yes", "no")
POPE_SPLITS = ("random", "popular", "adversarial")
PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
MME_PICTURES = (".jpg", ".png", ".jpeg")
MME_INSTRUCTION = " Please answer yes or no."
POINTS = 100  # of MME, for an accuracy of 1


@dataclass(kw_only=True)
class PopeConfig:
    """directory: where the official files are."""

    directory: str | None = None


@dataclass(kw_only=True)
class MmeConfig:
    """directory: the one that holds the 14 categories."""

    directory: str | None = None


class Pope(QuestionSet):
    name: ClassVar[str] = "pope"

    def __init__(self, config: PopeConfig) -> None:
        assert config.directory is not None
        source = "github.com/RUCAIBox/POPE (output/coco), pictures from cocodataset.org (val2014)"
        self.layout = Layout("pope.directory", Path(config.directory), source)

    def read(self, short_answer: str) -> list[Question]:
        questions = []
        for split in POPE_SPLITS:
            for where, record in read_json_lines(self.layout.file(f"coco_pope_{split}.json")):
                label = entry(record, "label", str, where)
                if label not in YES_NO:
                    raise UserError(f"{where}: the label is {label!r}, not yes or no")
                questions.append(
                    Question(
                        f"{split}/{entry(record, 'question_id', int, where)}",
                        self.layout.directory / "val2014" / entry(record, "image", str, where),
                        entry(record, "text", str, where) + short_answer,
                        split,
                        label,
                    )
                )
        self.layout.check_pictures(question.picture for question in questions)
        return questions

    def score(self, text: str, question: Question) -> float | None:
        return float(pope_answer(text) == question.truth)

    def numbers(self, answered: Sequence[Answered]) -> dict[str, float]:
        """YesNo's numbers of each split, and their means over the splits, which papers print (F1, as a rule)."""
        by_split: dict[str, list[Answered]] = defaultdict(list)
        for item in answered:
            by_split[item.question.kind].append(item)
        found = {
            split: asdict(
                YesNo.of([pope_answer(item.text) for item in items], [item.question.truth for item in items])
            )
            for split, items in by_split.items()
        }
        names = list(next(iter(found.values())))
        numbers = {name: float(np.mean([values[name] for values in found.values()])) for name in names}
        return numbers | {
            f"{name}/{split}": value for split, values in found.items() for name, value in values.items()
        }


class Mme(QuestionSet):
    name: ClassVar[str] = "mme"

    def __init__(self, config: MmeConfig) -> None:
        assert config.directory is not None
        source = "github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (Evaluation)"
        self.layout = Layout("mme.directory", Path(config.directory), source)

    def read(self, short_answer: str) -> list[Question]:
        root = self.layout.directory
        missing = [name for name in (*PERCEPTION, *COGNITION) if not (root / name).is_dir()]
        if missing:
            raise UserError(
                f"mme.directory={root}: the categories {', '.join(missing)} are missing; they come from "
                f"{self.layout.source}"
            )
        questions: list[Question] = []
        for category in (*PERCEPTION, *COGNITION):
            texts, pictures = root / category / "questions_answers_YN", root / category / "images"
            if not texts.is_dir():
                texts = pictures = root / category
            files = sorted(texts.glob("*.txt"))
            if not files:
                raise UserError(
                    f"mme.directory={root}: {category} has no questions; expected .txt files in {texts}"
                )
            for file in files:
                questions += self._of_picture(category, file, pictures, short_answer)
        return questions

    def score(self, text: str, question: Question) -> float | None:
        return float(mme_answer(text) == question.truth)

    def numbers(self, answered: Sequence[Answered]) -> dict[str, float]:
        """perception (of 2,000) and cognition (of 800) are sums of 100 · (accuracy + accuracy+) over their categories;
        both are there only where every category is."""
        right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
        for item in answered:
            right[item.question.kind][item.question.id.rpartition("/")[0]].append(item.score == 1)
        pairs = {category: paired_accuracy(pictures) for category, pictures in right.items()}
        numbers = {}
        for name, categories in (("perception", PERCEPTION), ("cognition", COGNITION)):
            if pairs.keys() >= set(categories):
                numbers[name] = POINTS * sum(sum(pairs[category]) for category in categories)
        pictures = {id_: values for of_category in right.values() for id_, values in of_category.items()}
        numbers["accuracy"], numbers["accuracy_plus"] = paired_accuracy(pictures)
        for category, (accuracy, plus) in pairs.items():
            numbers |= {f"accuracy/{category}": accuracy, f"accuracy_plus/{category}": plus}
        return numbers

    def _of_picture(self, category: str, file: Path, pictures: Path, short_answer: str) -> list[Question]:
        found = [pictures / (file.stem + ending) for ending in MME_PICTURES]
        picture = next((path for path in found if path.is_file()), None)
        if picture is None:
            raise UserError(f"{file}: its picture {found[0]} is missing")
        questions = []
        for number, line in enumerate(file.read_text(encoding="utf-8").strip().splitlines()):
            asked, _, answer = line.rpartition("\t")
            if answer.strip().lower() not in YES_NO or not asked:
                raise UserError(f"{file}, line {number + 1}: expected question<tab>Yes or question<tab>No")
            # LLaVA's instruction stands in the place of MME's own; without one, its own stays.
            text = asked.removesuffix(MME_INSTRUCTION) + short_answer if short_answer else asked
            id_ = f"{category}/{file.stem}/{number}"
            questions.append(Question(id_, picture, text, category, answer.strip().lower()))
        return questions
