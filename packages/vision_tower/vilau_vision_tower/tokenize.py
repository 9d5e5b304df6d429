"""`vilau tokenize`: a data set's pictures become codes once, instead of at each training step.

Code shards hold `<key>.codes.npy` and the sample's JSON as it was. The codes are uint16 [V, h, w, D], V variants of the
picture; of a sample with several pictures or frames [N, V, h, w, D]; a sample of text alone has none. Samples of other
people's tars, linked by `vilau prepare`, are numbered, and their JSON has the key. Their `dataset.json` names the tower
that made them: the fingerprint of its weights, K, D and the grid.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vilau_common.data.ahead import done_ahead
from vilau_common.data.augmentation import AugmentationConfig, augmented
from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import (
    CAPTIONS,
    CODES_FIELD,
    JSON_FIELD,
    captions_field,
    images_field,
    json_field,
)
from vilau_common.data.shards import DatasetInfo, ShardWriter, dataset_info, read_shards
from vilau_common.errors import UserError
from vilau_common.fingerprint import weights_fingerprint
from vilau_common.images import to_tensor
from vilau_common.pictures import Picture, centre_square
from vilau_common.training.progress import TrainingProgress
from vilau_vision_tower.tokenizer import ImageTokenizer
from vilau_vision_tower.tower import VisionTower, load_tower


@dataclass(kw_only=True)
class TokenizeConfig:
    """tower_directory: the tower's run; data: the prepared data set; directory: where the code shards go.

    variants: codes of so many versions of each picture, the picture as it is and others changed by `augmentation`;
    training draws one of them each time. threads: that decode pictures ahead of the tower, which runs on a GPU where
    there is one.
    """

    tower_directory: str
    data: str
    directory: str
    splits: list[str] = field(default_factory=lambda: ["train"])
    variants: int = 1
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    batch_size: int = 256
    threads: int = 4
    samples_per_shard: int = 10_000
    max_bad_share: float = 0.01

    def validate(self) -> None:
        """Raises UserError for variants that would not differ, an augmentation that would not be used, or a number out
        of range."""
        if not self.splits:
            raise UserError("splits names none; give those of the data set, such as splits=[train]")
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; at least 1 picture is encoded at a time")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"max_bad_share is {self.max_bad_share}; a share lies between 0 and 1")
        if self.threads < 1:
            raise UserError(f"threads is {self.threads}; at least 1 decodes pictures")
        if self.variants < 1:
            raise UserError(f"variants is {self.variants}; a picture has at least 1")
        if self.variants > 1 and not self.augmentation.any():
            raise UserError(
                f"variants is {self.variants}, but augmentation changes nothing: set augmentation.horizontal_flip or "
                "augmentation.move or augmentation.random_crop_scale, or variants=1"
            )
        if self.variants == 1 and self.augmentation.any():
            raise UserError(
                "augmentation is set, but the one variant is the picture as it is: set variants to 2 or more"
            )


@dataclass(frozen=True, kw_only=True)
class CodesOrigin:
    """Which tower codes are of: those of another one mean something else, even where their shape is the same."""

    fingerprint: str  # of the tower's weights
    codebook_size: int
    depth: int
    grid: tuple[int, int]

    @classmethod
    def of(cls, tower: ImageTokenizer, fingerprint: str) -> CodesOrigin:
        """Of codes that `tower`, whose weights have the fingerprint, makes."""
        return cls(
            fingerprint=fingerprint,
            codebook_size=tower.codebook_size,
            depth=tower.depth,
            grid=tower.grid,
        )

    def to_info(self) -> dict[str, Any]:
        """The entries of a code data set's `DatasetInfo.info`."""
        return {
            "tower": self.fingerprint,
            "codebook_size": self.codebook_size,
            "depth": self.depth,
            "grid": list(self.grid),
        }

    def check(self, directory: Path, info: Mapping[str, Any]) -> None:
        """Raises UserError, naming both towers and what differs, unless the codes in `directory` are of this tower."""
        made_by = info.get("tower")
        if made_by is None:
            raise UserError(
                f"{directory} holds no codes (its dataset.json names no tower); `vilau tokenize` makes codes"
            )
        own = self.to_info()
        shape = [
            f"{words} {info[name]}, not {own[name]}"
            for name, words in (("codebook_size", "K"), ("depth", "D"), ("grid", "grid"))
            if name in info and info[name] != own[name]
        ]
        if made_by == self.fingerprint and not shape:
            return
        raise UserError(
            f"the codes in {directory} were made with the tower {made_by}, but this LM's tower is {self.fingerprint} "
            f"({'; '.join(shape) or 'other weights of the same shape'}); run `vilau tokenize` with it"
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fingerprint = tower_fingerprint(config.tower_directory)
    for split in config.splits:
        source = dataset_info(Path(config.data) / split)
        info: dict[str, Any] = {"data": source.fingerprint, "tower": fingerprint, "split": split}
        info |= {"variants": config.variants, "augmentation": asdict(config.augmentation)}
        target = Path(config.directory) / split
        if _is_written(target, info):
            continue
        tower = tower or load_tower(config.tower_directory).to(device)
        info |= CodesOrigin.of(tower, fingerprint).to_info()
        _tokenize_split(tower, config, Path(config.data) / split, target, info, source.samples)


def _is_written(target: Path, info: Mapping[str, Any]) -> bool:
    """Whether whole codes with these entries stand there (the tower's shape follows from its fingerprint)."""
    try:
        found = dataset_info(target).info
    except UserError:
        return False
    return {name: found.get(name) for name in info} == info


@dataclass
class _Sample:
    key: str
    versions: Picture  # uint8 [V, N, size, size, 3], V variants of its N pictures
    record: bytes  # its JSON


def _tokenize_split(
    tower: VisionTower, config: TokenizeConfig, source: Path, target: Path, info: dict[str, Any], total: int
) -> None:
    bad: list[str] = []
    linked = dataset_info(source).linked
    with ShardWriter(target, info, samples_per_shard=config.samples_per_shard) as writer:
        with TrainingProgress("tokenize", total, "samples", visible=True) as progress:
            for batch in _batches(source, config, tower.image_size, bad):
                for sample, codes in zip(batch, _codes(tower, batch, config.batch_size), strict=True):
                    fields = {JSON_FIELD: sample.record}
                    if len(codes):
                        fields = {CODES_FIELD: _npy(codes[0] if len(codes) == 1 else codes), **fields}
                    # Other people's keys may hold anything.
                    writer.write(f"{writer.samples:09d}" if linked else sample.key, fields)
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


def _codes(tower: VisionTower, batch: Sequence[_Sample], batch_size: int) -> list[np.ndarray]:
    """uint16 [N, V, h, w, D] of each sample."""
    variants = []
    for pictures in np.concatenate([sample.versions for sample in batch], axis=1):
        images = [
            to_tensor(part) for part in np.split(pictures, range(batch_size, len(pictures), batch_size))
        ]
        encoded = [tower.encode(part.to(tower.device)) for part in images if len(part)]
        variants.append(torch.cat(encoded).cpu() if encoded else torch.zeros(0, 1, 1, 1))
    stacked = torch.stack(variants, dim=1).numpy().astype(np.uint16)
    return np.split(stacked, np.cumsum([sample.versions.shape[1] for sample in batch])[:-1])


def _variants(key: str, images: Sequence[Picture], size: int, config: TokenizeConfig) -> Picture:
    """uint8 [H, W, 3] each -> uint8 [V, N, size, size, 3].

    A sample's key fixes how its pictures are changed: all by the same draws, since frames belong together.
    """
    versions = np.zeros((config.variants, len(images), size, size, 3), np.uint8)
    for number, image in enumerate(images):
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        versions[0, number] = centre_square(image, size)
        for variant in range(1, config.variants):
            versions[variant, number] = augmented(image, size, config.augmentation, rng)
    return versions


def _batches(
    source: Path, config: TokenizeConfig, image_size: int, bad: list[str]
) -> Iterator[list[_Sample]]:
    """The samples, so many at a time that their pictures fill a batch."""
    info = dataset_info(source)

    def read(sample: tuple[str, dict[str, bytes]]) -> _Sample | BadSample:
        key, fields = sample
        try:
            theirs = json_field(fields) if JSON_FIELD in fields or not info.linked else None
            images = images_field(fields, {} if info.linked else theirs or {})
            return _Sample(
                key, _variants(key, images, image_size, config), _record(key, fields, theirs, info)
            )
        except BadSample as error:
            return BadSample(f"{key}: {error}")

    batch: list[_Sample] = []
    pictures = 0
    for sample in done_ahead(read, read_shards(source), config.threads):
        if isinstance(sample, BadSample):
            bad.append(str(sample))
            continue
        batch.append(sample)
        pictures += max(1, sample.versions.shape[1])  # samples of text alone must not pile up
        if pictures >= config.batch_size:
            yield batch
            batch, pictures = [], 0
    if batch:
        yield batch


def _record(key: str, fields: Mapping[str, bytes], theirs: dict[str, Any] | None, info: DatasetInfo) -> bytes:
    """The sample's JSON as it is; of other people's tars one of our form, with theirs (if any) as its `record`."""
    if not info.linked:
        return fields[JSON_FIELD]
    record: dict[str, Any] = {CAPTIONS: captions_field(fields, info.caption_key), "key": key}
    if theirs is not None:
        record["record"] = theirs
    return json.dumps(record, ensure_ascii=False).encode()


def _npy(codes: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, codes)
    return file.getvalue()
