"""What `vilau evaluate` measures of a VILA: the answers and captions that are asked of a unified LM."""

from __future__ import annotations

from pathlib import Path

from vilau_common.data.worlds.registry import world_of
from vilau_unified_lm.evaluation.examples import ExampleWriter
from vilau_unified_lm.evaluation.language import answer_questions, caption_pictures, language_metrics
from vilau_unified_lm.evaluation.splits import TEST, test_splits
from vilau_unified_lm.vila.session import VilaSession


def evaluate_vila(run: Path, data: Path, questions: int | None, examples: ExampleWriter) -> dict[str, float]:
    """The numbers `lm/…` on test data, named as a unified LM's, so that they compare line by line.

    questions: at most so many of each test split (None: all).
    """
    session = VilaSession.open(run)
    world = world_of(data / TEST)
    results: dict[str, float] = {}
    for prefix, split in test_splits(data):
        answers = answer_questions(session, split.images, split, questions)
        captions = caption_pictures(session, split.images, split, world)
        results |= {f"{prefix}lm/{key}": value for key, value in language_metrics(answers, captions).items()}
        if not prefix:
            examples.written("answers", split, answers)
            examples.written("captions", split, captions)
    return results
