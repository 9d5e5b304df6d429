"""Picture shards of `vilau prepare` -> packed documents, and their pictures as pixels.

The documents are the unified LM's (`DocumentEncoder`), written as if a picture's code at each of its places were its
number in the sample. The pixels travel beside them; a batch holds them in the order of its visual positions.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vilau_common import distributed
from vilau_common.data.encoder import BadSample, SampleEncoder
from vilau_common.data.fields import CODES_FIELD, PICTURES, images_field, json_field
from vilau_common.data.loader import Loader, build_loader
from vilau_common.errors import UserError
from vilau_common.pictures import Picture, centre_square
from vilau_unified_lm.data import DocumentDataConfig, DocumentEncoder, data_sources
from vilau_unified_lm.document import Codes, Document, ImageSegment
from vilau_unified_lm.packing import MixedSequence
from vilau_unified_lm.vocabulary import Vocabulary

# In place of a codebook: as many numbers as a sample may have pictures, one at each place.
NUMBERS, NUMBER_DEPTH = 2**16, 1
# Forms in which a picture is read; in the others it is drawn, which a model of continuous features cannot do.
READING_FORMS = ("image_to_text", "questions", "text", "video_to_text", "interleaved", "conversation")


@dataclass(kw_only=True)
class PictureDataConfig(DocumentDataConfig):
    """As for the unified LM, but directory holds pictures: a data set of `vilau prepare`, with train/.

    image_size: pixels a side, to which pictures of other sizes are resized and cropped. Of mixture, the forms that draw
    must be 0.
    """

    image_size: int = 256

    def validate(self) -> None:
        super().validate()
        mixed = [("data.mixture", form, weight) for form, weight in vars(self.mixture).items()]
        blended = [("data.blend", part.form, part.weight) for part in self.blend]
        for setting, form, weight in blended or mixed:
            if weight > 0 and form not in READING_FORMS:
                raise UserError(
                    f"{setting} has the form {form}, but VILA reads pictures and draws none: its forms are "
                    f"{', '.join(READING_FORMS)}; leave {form} out (data.mixture.{form}=0)"
                )
        if self.interleaved_image_loss:
            raise UserError(
                "data.interleaved_image_loss is true, but VILA draws no pictures; set it to false"
            )


@dataclass(frozen=True, eq=False)
class PictureDocument:
    """A document that tells pictures by number, and the pictures."""

    document: Document
    pictures: tuple[Picture, ...]  # uint8 [size, size, 3] each, of the numbers 0, 1, …

    def shown(self) -> list[Picture]:
        """The pictures in the order of the document's image segments."""
        images = [segment for segment in self.document.segments if isinstance(segment, ImageSegment)]
        return [self.pictures[segment.codes[0, 0]] for segment in images]


@dataclass
class PictureBatch:
    sequence: MixedSequence  # its codes are not to be read
    pixels: Tensor  # uint8 [P, H, W, 3], in the order of the visual positions

    def to(self, device: torch.device) -> PictureBatch:
        """The same batch on another device."""
        return PictureBatch(self.sequence.to(device), self.pixels.to(device))

    def pin_memory(self) -> PictureBatch:
        """The same batch in pinned memory; the loader calls it where there is an accelerator."""
        return PictureBatch(self.sequence.pin_memory(), self.pixels.pin_memory())


def picture_places(number: int, places: int) -> Codes:
    """What stands in a document for the sample's picture of that number: int64 [places, 1]."""
    return np.full((places, NUMBER_DEPTH), number)


def picture_vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The text tokenizer's, with numbers for codes. Raises UserError: see `Vocabulary`."""
    return Vocabulary.from_tokenizer(tokenizer, NUMBERS, NUMBER_DEPTH)


@functools.lru_cache(maxsize=64)
def stored_numbers(count: int, places: int) -> Mapping[str, bytes]:
    """The field of codes that a code shard's sample of `count` pictures would have, each coded as its number."""
    if not count:
        return {}
    codes = np.stack([picture_places(number, places) for number in range(count)])
    file = io.BytesIO()
    np.save(file, codes[:, np.newaxis, np.newaxis].astype(np.uint16))
    return {CODES_FIELD: file.getvalue()}


def stacked(pictures: Sequence[Picture], size: int) -> Tensor:
    """Pictures uint8 [size, size, 3] each -> uint8 [P, size, size, 3]; there may be none."""
    return torch.from_numpy(np.stack(pictures) if len(pictures) else np.zeros((0, size, size, 3), np.uint8))


class PictureEncoder(SampleEncoder[PictureDocument, list[PictureDocument], PictureBatch]):
    """Stored samples -> documents with pictures -> rows -> PictureBatch. places: the LM's places for a picture."""

    def __init__(self, config: PictureDataConfig, tokenizer: PreTrainedTokenizerBase, places: int) -> None:
        self.size = config.image_size
        self.places = places
        self.documents = DocumentEncoder(config, tokenizer, picture_vocabulary(tokenizer))

    def encode(
        self, key: str, fields: Mapping[str, bytes], form: str, rng: np.random.Generator
    ) -> PictureDocument:
        record = json_field(fields)
        count = record.get(PICTURES, 1)
        if type(count) is not int or not 0 <= count <= NUMBERS:
            raise BadSample(f"{PICTURES}: expected a number of pictures")
        stored = stored_numbers(count, self.places)
        document = self.documents.encode(key, {**fields, **stored}, form, rng)
        images = [segment for segment in document.segments if isinstance(segment, ImageSegment)]
        if not images:
            return PictureDocument(document, ())
        if any(image.supervised for image in images):
            raise BadSample("an answer with a picture, which VILA cannot draw")
        pictures = [centre_square(picture, self.size) for picture in images_field(fields, record)]
        return PictureDocument(document, tuple(pictures))

    def split(self, sample: PictureDocument) -> list[PictureDocument]:
        return [replace(sample, document=part) for part in self.documents.split(sample.document)]

    def select_packs(self, samples: Sequence[PictureDocument]) -> list[list[int]]:
        return self.documents.select_packs([sample.document for sample in samples])

    def pack(self, samples: Sequence[PictureDocument]) -> list[PictureDocument]:
        return list(samples)

    def collate(self, rows: Sequence[list[PictureDocument]]) -> PictureBatch:
        sequence = self.documents.collate([[item.document for item in row] for row in rows])
        shown = [picture for row in rows for item in row for picture in item.shown()]
        return PictureBatch(sequence, stacked(shown, self.size))


class PicturesOrigin:
    """In the place of a tower's `CodesOrigin`: the data are to hold pictures, and no codes."""

    def check(self, directory: Path, info: Mapping[str, Any]) -> None:
        """Raises UserError where the data set in `directory` is one of codes."""
        if "tower" in info:
            raise UserError(
                f"{directory} holds codes, but VILA reads pictures: set data.directory to the data set that "
                "`vilau prepare` made"
            )


def picture_loader(
    config: PictureDataConfig,
    tokenizer: PreTrainedTokenizerBase,
    places: int,
    seed: int,
    log_directory: Path,
) -> Loader[PictureBatch]:
    """The training stream of this rank, forms blended by their shares.

    places: the LM's places for a picture. Raises UserError where the picture shards are missing or hold codes.
    """
    config.validate()
    return build_loader(
        data_sources(config, PicturesOrigin()),
        PictureEncoder(config, tokenizer, places),
        config.loader,
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        log_directory=log_directory,
    )
