"""Picture shards of `vilau prepare` -> packed documents, and their pictures as pixels.

The documents are the unified LM's (`DocumentEncoder`), written as if a picture's code at each of its places were its
number in the sample. The pixels travel beside them; a batch holds them in the order of its visual positions.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vilau_common import distributed
from vilau_common.data.encoder import SampleEncoder
from vilau_common.data.fields import CODES_FIELD, image_field
from vilau_common.data.loader import Loader, build_loader
from vilau_common.data.shards import dataset_info
from vilau_common.data.source import Source
from vilau_common.errors import UserError
from vilau_common.pictures import Picture, centre_square
from vilau_unified_lm.data import DocumentDataConfig, DocumentEncoder
from vilau_unified_lm.document import Codes, Document, ImageSegment
from vilau_unified_lm.packing import MixedSequence
from vilau_unified_lm.vocabulary import Vocabulary

# In place of a codebook: as many numbers as a sample may have pictures, one at each place.
NUMBERS, NUMBER_DEPTH = 2**16, 1
# Forms in which a picture is read; in the others it is drawn, which a model of continuous features cannot do.
READING_FORMS = ("image_to_text", "questions", "text")


@dataclass(kw_only=True)
class PictureDataConfig(DocumentDataConfig):
    """As for the unified LM, but directory holds pictures: a data set of `vilau prepare`, with train/.

    image_size: pixels a side, to which pictures of other sizes are resized and cropped. Of mixture, the forms that draw
    must be 0.
    """

    image_size: int = 256

    def validate(self) -> None:
        super().validate()
        drawing = [
            form for form, weight in vars(self.mixture).items() if weight > 0 and form not in READING_FORMS
        ]
        if drawing:
            raise UserError(
                f"data.mixture.{drawing[0]} is above 0, but VILA reads pictures and draws none: its forms are "
                f"{', '.join(READING_FORMS)}; set data.mixture.{drawing[0]}=0"
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


def stored_codes(codes: Codes) -> bytes:
    """Codes int64 [T, D] of a picture as a code shard has them: uint16 [1, 1, T, D], one variant."""
    file = io.BytesIO()
    np.save(file, codes[np.newaxis, np.newaxis].astype(np.uint16))
    return file.getvalue()


def stacked(pictures: Sequence[Picture], size: int) -> Tensor:
    """Pictures uint8 [size, size, 3] each -> uint8 [P, size, size, 3]; there may be none."""
    return torch.from_numpy(np.stack(pictures) if len(pictures) else np.zeros((0, size, size, 3), np.uint8))


class PictureEncoder(SampleEncoder[PictureDocument, list[PictureDocument], PictureBatch]):
    """Stored samples -> documents with pictures -> rows -> PictureBatch. places: the LM's places for a picture."""

    def __init__(self, config: PictureDataConfig, tokenizer: PreTrainedTokenizerBase, places: int) -> None:
        self.size = config.image_size
        self.documents = DocumentEncoder(config, tokenizer, picture_vocabulary(tokenizer))
        self.stored = stored_codes(picture_places(0, places))

    def encode(
        self, key: str, fields: Mapping[str, bytes], form: str, rng: np.random.Generator
    ) -> PictureDocument:
        document = self.documents.encode(key, {**fields, CODES_FIELD: self.stored}, form, rng)
        if not any(isinstance(segment, ImageSegment) for segment in document.segments):
            return PictureDocument(document, ())
        return PictureDocument(document, (centre_square(image_field(fields), self.size),))

    def select_packs(self, samples: Sequence[PictureDocument]) -> list[list[int]]:
        return self.documents.select_packs([sample.document for sample in samples])

    def pack(self, samples: Sequence[PictureDocument]) -> list[PictureDocument]:
        return list(samples)

    def collate(self, rows: Sequence[list[PictureDocument]]) -> PictureBatch:
        sequence = self.documents.collate([[item.document for item in row] for row in rows])
        shown = [picture for row in rows for item in row for picture in item.shown()]
        return PictureBatch(sequence, stacked(shown, self.size))


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
    directory = Path(config.directory) / "train"
    if "tower" in dataset_info(directory).info:
        raise UserError(
            f"{directory} holds codes, but VILA reads pictures: set data.directory to the data set that "
            "`vilau prepare` made"
        )
    sources = [
        Source(path=str(directory), weight=weight, form=form)
        for form, weight in vars(config.mixture).items()
        if weight > 0
    ]
    return build_loader(
        sources,
        PictureEncoder(config, tokenizer, places),
        config.loader,
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        log_directory=log_directory,
    )
