"""A set of questions put to a model: batches, progress, what is done kept, answers judged at the end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from vilau_common.data.ahead import done_ahead
from vilau_common.errors import UserError
from vilau_common.pictures import Picture, PictureError, fitted_square, read_picture
from vilau_common.training.progress import TrainingProgress
from vilau_unified_lm.evaluation.public.asked import Asked, Prompt
from vilau_unified_lm.evaluation.public.predictions import Predictions, Record
from vilau_unified_lm.evaluation.public.questions import Answered, Question, QuestionSet
from vilau_unified_lm.evaluation.public.seed import LETTERS

# How a picture becomes the square that a model reads.
LOADING_THREADS = 2

Loaded = list[tuple[Question, Picture]]


def ask(
    asked: Asked,
    questions: QuestionSet,
    chosen: Sequence[Question],
    predictions: Predictions,
    *,
    batch_size: int,
    fit: str,
) -> list[Answered]:
    """The answers to `chosen`, those in `predictions` not asked again; fit: of FITS.

    Raises UserError for a picture that cannot be read; what was answered before is kept.
    """
    waiting = [question for question in chosen if question.id not in predictions.done]
    done = len(chosen) - len(waiting)

    def load(batch: Sequence[Question]) -> Loaded:
        return _loaded(batch, asked.image_size, fit)

    with TrainingProgress(f"evaluate {questions.name}", len(chosen), "questions", visible=True) as progress:
        if done:
            progress.say(f"{done} of {len(chosen)} questions were answered before")
        for loaded in done_ahead(load, _batches(waiting, batch_size), LOADING_THREADS):
            records = _records(asked, loaded, questions.max_tokens)
            predictions.add(records)
            done += len(records)
            progress.advance(done, len(records), None)
    answered = []
    for question in chosen:
        text = predictions.done[question.id]["text"]
        answered.append(Answered(question, text, questions.score(text, question)))
    return answered


def _records(asked: Asked, loaded: Loaded, max_tokens: int) -> list[Record]:
    """The answers of one batch. Whether a set's questions have choices is the same for all of them."""
    prompts = [Prompt(question.text, (picture,)) for question, picture in loaded]
    if not loaded[0][0].choices:
        texts = asked.answer(prompts, max_tokens)
        return [{"id": item.id, "text": text} for (item, _), text in zip(loaded, texts, strict=True)]
    pairs = [
        (prompt, choice)
        for prompt, (question, _) in zip(prompts, loaded, strict=True)
        for choice in question.choices
    ]
    found = iter(asked.likelihoods([prompt for prompt, _ in pairs], [choice for _, choice in pairs]))
    records = []
    for question, _ in loaded:
        # A mean over tokens, so that a long option is no worse for being long.
        losses = [float(item.losses.mean()) for item in itertools.islice(found, len(question.choices))]
        likeliest = LETTERS[losses.index(min(losses))]
        records.append({"id": question.id, "text": likeliest, "losses": losses})
    return records


def _batches(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    for start in range(0, len(questions), size):
        yield questions[start : start + size]


def _loaded(batch: Sequence[Question], size: int, fit: str) -> Loaded:
    """Each question with its picture, uint8 [size, size, 3]; the same array for the same file."""
    pictures = {path: picture_at(path, size, fit) for path in {question.picture for question in batch}}
    return [(question, pictures[question.picture]) for question in batch]


def picture_at(path: Path, size: int, fit: str) -> Picture:
    """A picture file as uint8 [size, size, 3]; fit: of FITS. Raises UserError where it cannot be read."""
    try:
        return fitted_square(read_picture(path.read_bytes()), size, fit)
    except (OSError, PictureError) as error:
        raise UserError(f"{path} cannot be read as a picture: {error}") from None
