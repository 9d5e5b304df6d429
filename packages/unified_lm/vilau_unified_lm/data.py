"""Code shards -> packed batches: which documents a sample becomes, and how rows are filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from vilau_common import distributed
from vilau_common.data.encoder import BadSample, SampleEncoder
from vilau_common.data.fields import codes_field, json_field, text_list
from vilau_common.data.loader import Loader, LoaderConfig, build_loader
from vilau_common.data.shards import dataset_info
from vilau_common.data.source import Source
from vilau_common.errors import UserError
from vilau_unified_lm.document import Codes, Document, DocumentBuilder
from vilau_unified_lm.packing import MixedSequence, first_fit_decreasing, pack
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.tokenize import CodesOrigin


@dataclass(kw_only=True)
class MixtureConfig:
    """Shares of the documents drawn, by form; 0 leaves a form out."""

    text_to_image: float = 0.5
    image_to_text: float = 0.15
    questions: float = 0.3
    text: float = 0.05


@dataclass(kw_only=True)
class DocumentDataConfig:
    """directory: code shards of `vilau tokenize`, with train/. row_length: places in a packed row.

    blank_share: of text-to-image documents whose caption is left out (for guidance). questions_per_document: turns
    about one picture at most. independent_questions: they do not see each other and any of a picture's are taken;
    false: they are one conversation, cut after the first ones.
    """

    directory: str
    mixture: MixtureConfig
    row_length: int = 4096
    blank_share: float = 0.1
    questions_per_document: int = 8
    independent_questions: bool = True
    loader: LoaderConfig

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        if not 0 <= self.blank_share <= 1:
            raise UserError(f"data.blank_share is {self.blank_share}; a share lies between 0 and 1")
        if self.questions_per_document < 1:
            raise UserError(
                f"data.questions_per_document is {self.questions_per_document}; it must be at least 1"
            )
        if self.loader.packing_buffer < 1:
            raise UserError("data.loader.packing_buffer is 0, but documents are packed; give some hundreds")
        for form, weight in vars(self.mixture).items():
            if weight < 0:
                raise UserError(f"data.mixture.{form} is {weight}; a share is 0 (none) or above")
        if not any(weight > 0 for weight in vars(self.mixture).values()):
            raise UserError("data.mixture gives no form of document a share above 0")


class DocumentEncoder(SampleEncoder[Document, list[Document], MixedSequence]):
    """Stored samples -> documents -> rows -> MixedSequence."""

    def __init__(
        self, config: DocumentDataConfig, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary
    ) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.builder = DocumentBuilder(tokenizer, vocabulary)

    def encode(self, key: str, fields: Mapping[str, bytes], form: str, rng: np.random.Generator) -> Document:
        record = json_field(fields)
        document = getattr(self, f"_{form}")(fields, record, rng)
        if len(document) > self.config.row_length:
            raise BadSample(
                f"a {form} document of {len(document)} places exceeds the row's {self.config.row_length}"
            )
        return document

    def select_packs(self, samples: Sequence[Document]) -> list[list[int]]:
        lengths = [len(document) for document in samples]
        rows = first_fit_decreasing(lengths, self.config.row_length)
        # They come longest documents first: unshuffled, one batch would be all questions and the next all drawings.
        order = np.random.default_rng(lengths).permutation(len(rows))
        return [rows[index] for index in order]

    def pack(self, samples: Sequence[Document]) -> list[Document]:
        return list(samples)

    def collate(self, rows: Sequence[list[Document]]) -> MixedSequence:
        return pack(rows, self.config.row_length, self.vocabulary.depth)

    def _text_to_image(
        self, fields: Mapping[str, bytes], record: Mapping[str, object], rng: np.random.Generator
    ) -> Document:
        captions = text_list(record, "captions")
        blank = rng.random() < self.config.blank_share
        caption = "" if blank else captions[rng.integers(len(captions))]
        return self.builder.text_to_image(caption, self._codes(fields, rng))

    def _image_to_text(
        self, fields: Mapping[str, bytes], record: Mapping[str, object], rng: np.random.Generator
    ) -> Document:
        # The first caption says everything that is known of the picture; a description does, too, in a fixed order.
        said = record.get("description") or text_list(record, "captions")[0]
        if not isinstance(said, str):
            raise BadSample("description: expected a text")
        return self.builder.image_to_text(self._codes(fields, rng), said)

    def _questions(
        self, fields: Mapping[str, bytes], record: Mapping[str, object], rng: np.random.Generator
    ) -> Document:
        questions = record.get("questions")
        if not isinstance(questions, list) or not questions or not all(map(_is_turn, questions)):
            raise BadSample("no questions: expected a list of objects with question and answer")
        if self.config.independent_questions:
            order = rng.permutation(len(questions))
        else:
            order = np.arange(len(questions))
        turns = [(questions[i]["question"], questions[i]["answer"]) for i in order]
        turns = turns[: self.config.questions_per_document]
        return self.builder.questions(self._codes(fields, rng), turns, self.config.independent_questions)

    def _text(
        self, fields: Mapping[str, bytes], record: Mapping[str, object], rng: np.random.Generator
    ) -> Document:
        texts = text_list(record, "texts")
        return self.builder.text(texts[rng.integers(len(texts))])

    def _codes(self, fields: Mapping[str, bytes], rng: np.random.Generator) -> Codes:
        variants = codes_field(fields, self.vocabulary.codebook_size)
        if variants.shape[-1] != self.vocabulary.depth:
            raise BadSample(f"{variants.shape[-1]} codes a position, not {self.vocabulary.depth}")
        return variants[rng.integers(len(variants))].astype(np.int64)


def _is_turn(question: object) -> bool:
    return isinstance(question, dict) and all(
        isinstance(question.get(name), str) for name in ("question", "answer")
    )


def document_loader(
    config: DocumentDataConfig,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    origin: CodesOrigin,
    seed: int,
    log_directory: Path,
) -> Loader[MixedSequence]:
    """The training stream of this rank, forms blended by their shares.

    origin: the LM's tower. Raises UserError where the code shards are missing or another tower's.
    """
    config.validate()
    directory = Path(config.directory) / "train"
    origin.check(directory, dataset_info(directory, hint="`vilau tokenize` makes it").info)
    sources = [
        Source(path=str(directory), weight=weight, form=form)
        for form, weight in vars(config.mixture).items()
        if weight > 0
    ]
    return build_loader(
        sources,
        DocumentEncoder(config, tokenizer, vocabulary),
        config.loader,
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        log_directory=log_directory,
    )
