"""Forms: which document a stored sample becomes. One method a form, named as in `data.mixture` and `data.blend`.

Every method takes the sample's fields, its JSON record and a random generator, and raises BadSample where the sample
lacks what the form needs. docs/data.md lists the fields.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vilau_common.data.conversation import read_turns, without_placeholders
from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import (
    INSTRUCTION,
    INTERLEAVED,
    json_field,
    sample_codes,
    text_field,
    text_list,
    video_lengths,
)
from vilau_common.errors import UserError
from vilau_unified_lm.document import Codes, Document, DocumentBuilder

Record = Mapping[str, object]


class DocumentForms:
    """Stored samples -> documents.

    blank_share, questions_per_document, independent_questions, interleaved_image_loss: as in `DocumentDataConfig`.
    """

    def __init__(
        self,
        builder: DocumentBuilder,
        *,
        blank_share: float,
        questions_per_document: int,
        independent_questions: bool,
        interleaved_image_loss: bool,
    ) -> None:
        self.builder = builder
        self.blank_share = blank_share
        self.questions_per_document = questions_per_document
        self.independent_questions = independent_questions
        self.interleaved_image_loss = interleaved_image_loss

    def document(self, fields: Mapping[str, bytes], form: str, rng: np.random.Generator) -> Document:
        """The sample as a document of the form. Raises BadSample."""
        record = json_field(fields)
        try:
            document: Document = getattr(self, form)(fields, record, rng)
        except UserError as error:  # of one conversation that the chat template refuses
            raise BadSample(str(error)) from error
        return document

    # --- pairs --------------------------------------------------------------------------------------------------

    def text_to_image(
        self, fields: Mapping[str, bytes], record: Record, rng: np.random.Generator
    ) -> Document:
        caption = self._caption(record, rng)
        return self.builder.text_to_image(caption, self._image(fields, record, rng))

    def image_to_text(
        self, fields: Mapping[str, bytes], record: Record, rng: np.random.Generator
    ) -> Document:
        return self.builder.image_to_text(self._image(fields, record, rng), _description(record))

    def text_to_video(
        self, fields: Mapping[str, bytes], record: Record, rng: np.random.Generator
    ) -> Document:
        caption = self._caption(record, rng)
        return self.builder.text_to_video(caption, self._video(fields, record, rng))

    def video_to_text(
        self, fields: Mapping[str, bytes], record: Record, rng: np.random.Generator
    ) -> Document:
        return self.builder.video_to_text(self._video(fields, record, rng), _description(record))

    def edit(self, fields: Mapping[str, bytes], record: Record, rng: np.random.Generator) -> Document:
        instruction = text_field(record, INSTRUCTION)
        images, _ = self._pictures(fields, record, rng, images=2, videos=0)
        return self.builder.edit(images[0], instruction, images[1])

    # --- everything else ----------------------------------------------------------------------------------------

    def questions(self, fields: Mapping[str, bytes], record: Record, rng: np.random.Generator) -> Document:
        questions = record.get("questions")
        if not isinstance(questions, list) or not questions or not all(map(_is_turn, questions)):
            raise BadSample(
                "no questions: expected a list of objects with question and answer, none of them empty"
            )
        if self.independent_questions:
            order = rng.permutation(len(questions))
        else:
            order = np.arange(len(questions))
        turns = [(questions[i]["question"], questions[i]["answer"]) for i in order]
        turns = turns[: self.questions_per_document]
        return self.builder.questions(self._image(fields, record, rng), turns, self.independent_questions)

    def conversation(self, fields: Mapping[str, bytes], record: Record, rng: np.random.Generator) -> Document:
        turns = read_turns(record)
        return self.builder.conversation(turns, *self._pictures(fields, record, rng))

    def interleaved(self, fields: Mapping[str, bytes], record: Record, rng: np.random.Generator) -> Document:
        text = text_field(record, INTERLEAVED)
        images, _ = self._pictures(fields, record, rng, videos=0)
        if not without_placeholders(text) and not self.interleaved_image_loss:
            raise BadSample("an empty document: no text beside its images")
        return self.builder.interleaved(text, images, image_loss=self.interleaved_image_loss)

    def text(self, fields: Mapping[str, bytes], record: Record, rng: np.random.Generator) -> Document:
        texts = text_list(record, "texts")
        return self.builder.text(_said(texts[rng.integers(len(texts))], "text"))

    # --- parts --------------------------------------------------------------------------------------------------

    def _caption(self, record: Record, rng: np.random.Generator) -> str:
        captions = text_list(record, "captions")
        if rng.random() < self.blank_share:
            return ""
        return _said(captions[rng.integers(len(captions))], "caption")

    def _image(self, fields: Mapping[str, bytes], record: Record, rng: np.random.Generator) -> Codes:
        return self._pictures(fields, record, rng, images=1, videos=0)[0][0]

    def _video(self, fields: Mapping[str, bytes], record: Record, rng: np.random.Generator) -> list[Codes]:
        return self._pictures(fields, record, rng, images=0, videos=1)[1][0]

    def _pictures(
        self,
        fields: Mapping[str, bytes],
        record: Record,
        rng: np.random.Generator,
        images: int | None = None,
        videos: int | None = None,
    ) -> tuple[list[Codes], list[list[Codes]]]:
        """Codes of its images, int64 [h, w, D], and of the frames of its videos; the same variant of them all.

        images, videos: how many the form needs; None: any number.
        """
        vocabulary = self.builder.vocabulary
        stored = sample_codes(fields, record, vocabulary.codebook_size)
        if len(stored) and stored.shape[-1] != vocabulary.depth:
            raise BadSample(f"{stored.shape[-1]} codes a position, not {vocabulary.depth}")
        lengths = video_lengths(record)
        alone = len(stored) - sum(lengths)
        if alone < 0:
            raise BadSample(f"its videos have {sum(lengths)} frames, but there are {len(stored)} pictures")
        for what, there, needed in (("image", alone, images), ("video", len(lengths), videos)):
            if needed is not None and there != needed:
                raise BadSample(f"{there} {what}s, where the form needs {needed}")
        if not len(stored):
            return [], []
        frames = list(stored[:, rng.integers(stored.shape[1])].astype(np.int64))
        ends = alone + np.cumsum(lengths, dtype=np.int64)
        return frames[:alone], [frames[end - n : end] for end, n in zip(ends, lengths, strict=True)]


def _description(record: Record) -> str:
    # The first caption says everything that is known of the picture; a description does, too, in a fixed order.
    said = record.get("description") or text_list(record, "captions")[0]
    if not isinstance(said, str):
        raise BadSample("description: expected a text")
    return _said(said, "caption")


def _said(text: str, what: str) -> str:
    if text.isspace():
        raise BadSample(f"an empty document: its {what} is white space alone")
    return text


def _is_turn(question: object) -> bool:
    if not isinstance(question, dict):
        return False
    turn = [question.get(name) for name in ("question", "answer")]
    return all(isinstance(text, str) and text.strip() for text in turn)
