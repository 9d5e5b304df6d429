"""`vilau tokenize`: a data set's pictures become codes once, instead of at each training step.

Code shards hold `<key>.codes.npy` (uint16 [V, h, w, D], V variants of the picture) and the sample's JSON as it was.
Their `dataset.json` names the tower that made them by its fingerprint.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vilau_common.data.augmentation import AugmentationConfig, augmented
from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import CODES_FIELD, JSON_FIELD, json_field
from vilau_common.data.prepare import is_prepared
from vilau_common.data.shards import ShardWriter, dataset_info, read_shards
from vilau_common.errors import UserError
from vilau_common.fingerprint import weights_fingerprint
from vilau_common.images import Picture, to_tensor
from vilau_common.training.progress import TrainingProgress
from vilau_vision_tower.data import square_image
from vilau_vision_tower.tower import VisionTower, load_tower

# Codes are stored as 16-bit numbers.
LARGEST_CODEBOOK = 2**16


@dataclass(kw_only=True)
class TokenizeConfig:
    """tower_directory: the tower's run; data: the prepared data set; directory: where the code shards go.

    variants: codes of so many versions of each picture, the picture as it is and others changed by `augmentation`;
    training draws one of them each time.
    """

    tower_directory: str
    data: str
    directory: str
    splits: list[str] = field(default_factory=lambda: ["train"])
    variants: int = 1
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    batch_size: int = 256
    samples_per_shard: int = 10_000
    max_bad_share: float = 0.01

    def validate(self) -> None:
        """Raises UserError for variants that would not differ, or an augmentation that would not be used."""
        if self.variants < 1:
            raise UserError(f"variants is {self.variants}; a picture has at least 1")
        if self.variants > 1 and not self.augmentation.any():
            raise UserError(
                f"variants is {self.variants}, but augmentation changes nothing: set augmentation.horizontal_flip or "
                "augmentation.move, or variants=1"
            )
        if self.variants == 1 and self.augmentation.any():
            raise UserError(
                "augmentation is set, but the one variant is the picture as it is: set variants to 2 or more"
            )


def tower_fingerprint(directory: str | Path) -> str:
    """A short hash of the tower's weights in a run directory. Raises UserError where there are none."""
    path = Path(directory)
    path = path / "model" if (path / "model").is_dir() else path
    if not any(path.glob("*.safetensors")):
        raise UserError(
            f"no vision tower in {directory}: {path} holds no *.safetensors; `make train-tower` trains one"
        )
    return weights_fingerprint(path)


def tokenize(config: TokenizeConfig) -> None:
    """Write code shards of every split that is not there yet. Raises UserError for a missing tower or data set."""
    config.validate()
    tower: VisionTower | None = None
    fingerprint = tower_fingerprint(config.tower_directory)
    for split in config.splits:
        source = dataset_info(Path(config.data) / split)
        info: dict[str, Any] = {"data": source.fingerprint, "tower": fingerprint, "split": split}
        info |= {"variants": config.variants, "augmentation": asdict(config.augmentation)}
        target = Path(config.directory) / split
        if is_prepared(target, info):
            continue
        tower = tower or load_tower(config.tower_directory)
        if tower.codebook_size > LARGEST_CODEBOOK:
            raise UserError(
                f"{config.tower_directory}: codes of {tower.codebook_size} entries do not fit into 16 bits"
            )
        _tokenize_split(tower, config, Path(config.data) / split, target, info, source.samples)


def _tokenize_split(
    tower: VisionTower, config: TokenizeConfig, source: Path, target: Path, info: dict[str, Any], total: int
) -> None:
    bad: list[str] = []
    with ShardWriter(target, info, samples_per_shard=config.samples_per_shard) as writer:
        with TrainingProgress("tokenize", total, "images", visible=True) as progress:
            for batch in _batches(source, config.batch_size, tower.image_size, bad):
                versions = np.stack([_variants(key, image, config) for key, image, _ in batch], axis=1)
                codes = torch.stack([tower.encode(to_tensor(v).to(tower.device)) for v in versions], dim=1)
                stacks = codes.cpu().numpy().astype(np.uint16)
                for (key, _, record), stack in zip(batch, stacks, strict=True):
                    writer.write(key, {CODES_FIELD: _npy(stack), JSON_FIELD: record})
                progress.advance(writer.samples, len(batch), None)
        if len(bad) > config.max_bad_share * total:
            raise UserError(
                f"{source}: {len(bad)} of {total} samples are bad, more than max_bad_share {config.max_bad_share}; "
                f"the first: {bad[0]}"
            )
    if bad:
        print(
            f"tokenize: {len(bad)} of {total} samples of {source} are bad and left out; the first: {bad[0]}"
        )


def _variants(key: str, image: Picture, config: TokenizeConfig) -> Picture:
    """uint8 [H, W, 3] -> uint8 [V, H, W, 3]; a sample's key fixes how it is changed."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    changed = [augmented(image, config.augmentation, rng) for _ in range(config.variants - 1)]
    return np.stack([image, *changed])


def _batches(
    source: Path, size: int, image_size: int, bad: list[str]
) -> Iterator[list[tuple[str, np.ndarray, bytes]]]:
    batch: list[tuple[str, np.ndarray, bytes]] = []
    for key, fields in read_shards(source):
        try:
            json_field(fields)
            batch.append((key, square_image(fields, image_size), fields[JSON_FIELD]))
        except BadSample as error:
            bad.append(f"{key}: {error}")
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _npy(codes: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, codes)
    return file.getvalue()
