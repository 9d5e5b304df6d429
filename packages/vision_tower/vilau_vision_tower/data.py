"""Captioned images as the CLIP and tower trainings read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vilau_common import distributed
from vilau_common.data.augmentation import AugmentationConfig, augmented
from vilau_common.data.encoder import BadSample, SampleEncoder
from vilau_common.data.fields import CAPTIONS, captions_field, image_field, json_field, text_list
from vilau_common.data.loader import Loader, LoaderConfig, build_loader
from vilau_common.data.shards import dataset_info, read_shards
from vilau_common.data.source import Source
from vilau_common.errors import UserError
from vilau_common.images import to_tensor
from vilau_common.pictures import centre_square
from vilau_vision_tower.clip import caption_ids

NEGATIVES = "negatives"  # where a sample's JSON has captions that are almost, but not, true of it


@dataclass(kw_only=True)
class CaptionDataConfig:
    """Captioned images.

    directory: a prepared data set with train/ and test/. image_size: pixels a side, to which pictures of other sizes
    are resized and cropped. random_caption: any of a
    sample's captions, not its first. hard_negatives: of the sample's `negatives` (captions that are almost, but
    not, true of it), so many stand beside its caption in the contrastive loss. augmentation: of every picture.
    """

    directory: str
    image_size: int = 256
    random_caption: bool = False
    hard_negatives: int = 0
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    loader: LoaderConfig


@dataclass
class CaptionedSample:
    image: npt.NDArray[np.uint8]  # [H, W, 3]
    caption: str
    negatives: list[str]


@dataclass
class CaptionedBatch:
    images: Tensor  # float32 [B, 3, H, W] in [-1, 1]
    caption_ids: Tensor  # int64 [B, L]
    negative_ids: Tensor  # int64 [B * hard_negatives, L]

    def to(self, device: torch.device) -> CaptionedBatch:
        """The same batch on another device."""
        return CaptionedBatch(**{name: value.to(device) for name, value in vars(self).items()})

    def pin_memory(self) -> CaptionedBatch:
        """The same batch in pinned memory."""
        return CaptionedBatch(**{name: value.pin_memory() for name, value in vars(self).items()})


class CaptionedImageEncoder(SampleEncoder[CaptionedSample, CaptionedSample, CaptionedBatch]):
    """Stored samples -> CaptionedBatch.

    length: text tokens a caption is cut or padded to. caption_key: where a sample has its captions (`captions_field`).
    """

    def __init__(
        self,
        config: CaptionDataConfig,
        tokenizer: PreTrainedTokenizerFast,
        length: int,
        caption_key: str = CAPTIONS,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.length = length
        self.caption_key = caption_key

    def encode(
        self, key: str, fields: Mapping[str, bytes], form: str, rng: np.random.Generator
    ) -> CaptionedSample:
        captions = captions_field(fields, self.caption_key)
        image = augmented(image_field(fields), self.config.image_size, self.config.augmentation, rng)
        caption = captions[rng.integers(len(captions))] if self.config.random_caption else captions[0]
        negatives: list[str] = []
        if self.config.hard_negatives:
            negatives = list(rng.choice(text_list(json_field(fields), NEGATIVES), self.config.hard_negatives))
        return CaptionedSample(image, caption, negatives)

    def collate(self, rows: Sequence[CaptionedSample]) -> CaptionedBatch:
        captions = [row.caption for row in rows] + [negative for row in rows for negative in row.negatives]
        ids = caption_ids(self.tokenizer, captions, self.length)
        return CaptionedBatch(
            images=to_tensor(np.stack([row.image for row in rows])),
            caption_ids=ids[: len(rows)],
            negative_ids=ids[len(rows) :],
        )


def caption_loader(
    config: CaptionDataConfig, tokenizer: PreTrainedTokenizerFast, length: int, seed: int, log_directory: Path
) -> Loader[CaptionedBatch]:
    """The training split's loader of this rank.

    Raises UserError where the data set is not prepared, or has no negatives though some are asked for.
    """
    directory = Path(config.directory) / "train"
    if config.hard_negatives:
        _require_negatives(directory, config.hard_negatives)
    return build_loader(
        [Source(path=str(directory))],
        CaptionedImageEncoder(config, tokenizer, length, dataset_info(directory).caption_key),
        config.loader,
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        log_directory=log_directory,
    )


def _require_negatives(directory: Path, count: int) -> None:
    """Of a data set that does not say so, the first sample must have some: else every one would be a bad sample."""
    if dataset_info(directory).info.get("hard_negatives"):
        return
    key, fields = next(read_shards(directory))
    try:
        text_list(json_field(fields), NEGATIVES)
    except BadSample:
        raise UserError(
            f"data.hard_negatives is {count}, but the samples in {directory} have no {NEGATIVES} (the first one is "
            f"{key}): set data.hard_negatives=0; `vilau prepare` makes {NEGATIVES} for the built-in worlds alone"
        ) from None


def read_images(directory: Path, count: int | None = None, *, size: int) -> npt.NDArray[np.uint8]:
    """The first `count` pictures of a prepared split (None: all), their centre squares, uint8 [N, size, size, 3].

    Raises UserError where one is damaged: a test set must be whole.
    """
    total = dataset_info(directory).samples
    wanted = total if count is None else min(count, total)
    images: list[npt.NDArray[np.uint8]] = []
    for key, fields in read_shards(directory):
        if len(images) == wanted:
            break
        try:
            images.append(centre_square(image_field(fields), size))
        except BadSample as error:
            raise UserError(f"{directory}: sample {key} of an evaluation set is damaged: {error}") from None
    return np.stack(images)
