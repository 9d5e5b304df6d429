"""Code shards -> packed batches: which documents a sample becomes, and how rows are filled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from vilau_common import distributed
from vilau_common.data.encoder import BadSample, SampleEncoder
from vilau_common.data.fields import JSON_FIELD
from vilau_common.data.loader import Loader, LoaderConfig, build_loader
from vilau_common.data.shards import dataset_info
from vilau_common.data.source import Source
from vilau_common.errors import UserError
from vilau_unified_lm.document import Document, DocumentBuilder
from vilau_unified_lm.forms import DocumentForms
from vilau_unified_lm.packing import MixedSequence, first_fit_decreasing, pack
from vilau_unified_lm.segments import largest_unit, split_document
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.tokenize import CodesOrigin

# A document of these that is longer than a row goes on in further rows; of others it is skipped and counted.
SPLIT_FORMS = ("text", "interleaved")
LEAST_PLACES = 2  # of a row: what begins a document, and a token


class Origin(Protocol):
    """What a data set of pictures must come from."""

    def check(self, directory: Path, info: Mapping[str, Any]) -> None:
        """Raises UserError unless the data set in `directory`, described by `info`, does."""


@dataclass(kw_only=True)
class MixtureConfig:
    """Shares of the documents drawn, by form (`forms`); 0 leaves a form out."""

    text_to_image: float = 0.5
    image_to_text: float = 0.15
    questions: float = 0.3
    text: float = 0.05
    text_to_video: float = 0.0
    video_to_text: float = 0.0
    edit: float = 0.0
    interleaved: float = 0.0
    conversation: float = 0.0


@dataclass(kw_only=True)
class BlendConfig:
    """directory: as in `DocumentDataConfig`, and under the one that is set there. form: of `MixtureConfig`. weight:
    relative to the others'; 0: none."""

    directory: str
    form: str
    weight: float = 1.0


@dataclass(kw_only=True)
class DocumentDataConfig:
    """directory: code shards of `vilau tokenize`, with train/; of data without pictures as `vilau prepare` made it.
    mixture: of its forms. blend: in place of the mixture, several directories, each in one form, in `directory`
    where that is set. row_length: places in a packed row.

    blank_share: of text-to-image and text-to-video documents whose caption is left out (for guidance).
    questions_per_document: turns about one picture at most. independent_questions: they do not see each other and
    any of a picture's are taken; false: they are one conversation, cut after the first ones. interleaved_image_loss:
    interleaved documents train their images, too, not their text alone.
    """

    directory: str | None = None
    mixture: MixtureConfig
    blend: list[BlendConfig] = field(default_factory=list)
    row_length: int = 4096
    blank_share: float = 0.1
    questions_per_document: int = 8
    independent_questions: bool = True
    interleaved_image_loss: bool = False
    loader: LoaderConfig

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        if not 0 <= self.blank_share <= 1:
            raise UserError(f"data.blank_share is {self.blank_share}; a share lies between 0 and 1")
        if self.row_length < LEAST_PLACES:
            raise UserError(f"data.row_length is {self.row_length}; a row has at least {LEAST_PLACES} places")
        if self.questions_per_document < 1:
            raise UserError(
                f"data.questions_per_document is {self.questions_per_document}; it must be at least 1"
            )
        if self.loader.packing_buffer < 1:
            raise UserError("data.loader.packing_buffer is 0, but documents are packed; give some hundreds")
        if self.blend:
            self._validate_blend()
        elif self.directory is None:
            raise UserError(
                "data.directory is not set; give code shards of `vilau tokenize`, or set data.blend"
            )
        else:
            _require_weights("data.mixture", vars(self.mixture).items())

    def _validate_blend(self) -> None:
        forms = list(vars(self.mixture))
        for number, part in enumerate(self.blend):
            if part.form not in forms:
                raise UserError(f"data.blend[{number}].form is {part.form}; there are {', '.join(forms)}")
        weights = [(f"{number} ({part.directory})", part.weight) for number, part in enumerate(self.blend)]
        _require_weights("data.blend", weights)


def _require_weights(setting: str, weights: Iterable[tuple[str, float]]) -> None:
    weights = list(weights)
    for name, weight in weights:
        if not 0 <= weight < math.inf:  # NaN neither
            raise UserError(f"{setting}.{name} is {weight}; a share is 0 (none) or above")
    if not any(weight > 0 for _, weight in weights):
        raise UserError(f"{setting} gives no form of document a share above 0")


def data_places(config: DocumentDataConfig) -> list[str]:
    """Dotted keys that say where the data are: they may move between the starts of a run."""
    return ["data.directory", *(f"data.blend.{number}.directory" for number in range(len(config.blend)))]


class DocumentEncoder(SampleEncoder[Document, list[Document], MixedSequence]):
    """Stored samples -> documents -> rows -> MixedSequence."""

    def __init__(
        self, config: DocumentDataConfig, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary
    ) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.builder = DocumentBuilder(tokenizer, vocabulary)
        self.forms = DocumentForms(
            self.builder,
            blank_share=config.blank_share,
            questions_per_document=config.questions_per_document,
            independent_questions=config.independent_questions,
            interleaved_image_loss=config.interleaved_image_loss,
        )

    def encode(self, key: str, fields: Mapping[str, bytes], form: str, rng: np.random.Generator) -> Document:
        document = self.forms.document(fields, form, rng)
        longest = self.config.row_length
        if len(document) > longest and form not in SPLIT_FORMS:
            raise BadSample(f"a {form} document of {len(document)} places exceeds the row's {longest}")
        if len(document) > longest and (size := largest_unit(document)) > longest:
            raise BadSample(f"an image of {size} places exceeds the row's {longest}")
        return document

    def split(self, sample: Document) -> Sequence[Document]:
        longest = self.config.row_length
        return (sample,) if len(sample) <= longest else split_document(sample, longest)

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


def data_sources(config: DocumentDataConfig, origin: Origin) -> list[Source]:
    """The weighted sources of `data.blend`, or of `data.directory` and `data.mixture`.

    Raises UserError where a data set is missing or its codes are another tower's. Sets without pictures need no codes.
    """
    blend = config.blend or [
        BlendConfig(directory=".", form=form, weight=weight) for form, weight in vars(config.mixture).items()
    ]
    sources = []
    for part in blend:
        if part.weight > 0:
            directory = Path(config.directory or "") / part.directory / "train"
            data = dataset_info(directory, hint="`vilau tokenize` makes it")
            if data.fields != [JSON_FIELD]:
                origin.check(directory, data.info)
            sources.append(Source(path=str(directory), weight=part.weight, form=part.form))
    return sources


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
    return build_loader(
        data_sources(config, origin),
        DocumentEncoder(config, tokenizer, vocabulary),
        config.loader,
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        log_directory=log_directory,
    )
