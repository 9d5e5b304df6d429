"""Captions of COCO's pictures, judged by pycocoevalcap (the COCO caption evaluation): BLEU, ROUGE-L and CIDEr.

    captions   annotations/captions_<split>.json, <split>/<file_name>

Its tokenizer is Stanford's, which needs Java. METEOR and SPICE, which need Java servers of their own, are left out.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vilau_common.errors import UserError
from vilau_unified_lm.document import DESCRIBE
from vilau_unified_lm.evaluation.public.files import Layout, entry, objects, read_json
from vilau_unified_lm.evaluation.public.questions import Answered, Question, QuestionSet

# One caption of COCO has some 10 words.
CAPTION_TOKENS = 64


@dataclass(kw_only=True)
class CaptionsConfig:
    """directory: where COCO's files are. split: val2014 or val2017. prompt: what asks for a caption."""

    directory: str | None = None
    split: str = "val2014"
    prompt: str = DESCRIBE


class Captions(QuestionSet):
    name: ClassVar[str] = "captions"
    max_tokens: ClassVar[int] = CAPTION_TOKENS

    def __init__(self, config: CaptionsConfig) -> None:
        """Raises UserError where the judge's library or Java is missing."""
        assert config.directory is not None
        if importlib.util.find_spec("pycocoevalcap") is None:
            raise UserError(
                "captions.directory needs pycocoevalcap: pip install 'vilau-unified-lm[captions]'"
            )
        if shutil.which("java") is None:
            raise UserError(
                "captions.directory needs Java, which the caption evaluation's tokenizer runs on: install a Java "
                "runtime, or leave captions.directory out"
            )
        self.config = config
        self.layout = Layout("captions.directory", Path(config.directory), "cocodataset.org/#download")

    def read(self, short_answer: str) -> list[Question]:
        file = self.layout.file(f"annotations/captions_{self.config.split}.json")
        content = read_json(file)
        captions: dict[int, list[str]] = defaultdict(list)
        for where, record in objects(content, "annotations", file):
            captions[entry(record, "image_id", int, where)].append(entry(record, "caption", str, where))
        questions = []
        for where, record in objects(content, "images", file):
            number = entry(record, "id", int, where)
            if number not in captions:
                raise UserError(f"{where}: picture {number} has no caption")
            picture = self.layout.directory / self.config.split / entry(record, "file_name", str, where)
            questions.append(Question(str(number), picture, self.config.prompt, "", captions[number]))
        self.layout.check_pictures(question.picture for question in questions)
        return questions

    def score(self, text: str, question: Question) -> float | None:
        return None  # CIDEr depends on the whole set

    def numbers(self, answered: Sequence[Answered]) -> dict[str, float]:
        return caption_scores(
            {item.question.id: item.text for item in answered},
            {item.question.id: item.question.truth for item in answered},
        )


def caption_scores(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """bleu_1 … bleu_4, rouge_l and cider of one caption and its references by picture."""
    # Their modules are large, and they are an extra.
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    written = tokenizer.tokenize({key: [{"caption": text}] for key, text in captions.items()})
    truths = tokenizer.tokenize(
        {key: [{"caption": text} for text in texts] for key, texts in references.items()}
    )
    bleu = Bleu(4).compute_score(truths, written, verbose=0)[0]
    numbers = {f"bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)}
    numbers["rouge_l"] = float(Rouge().compute_score(truths, written)[0])
    numbers["cider"] = float(Cider().compute_score(truths, written)[0])
    return numbers
