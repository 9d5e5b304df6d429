"""What a source of samples is, and how these are divided into training and test ones."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vilau_common.data.fields import CAPTIONS, PICTURES
from vilau_common.errors import UserError

TRAIN, TEST = "train", "test"

_HASH_BYTES = 8


@dataclass(kw_only=True)
class SourceConfig:
    """What every source is configured by: nothing. Each kind derives from it."""


@dataclass(kw_only=True)
class SamplesConfig(SourceConfig):
    """Samples that people give: pictures with captions, documents, videos, texts.

    test_share: of the samples, set apart by a hash of their keys: a sample stays on its side when others come or go.
    max_bad_share: of samples that lack what they need, or are damaged, left out before it counts as a mistake.
    """

    test_share: float = 0.02
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise UserError(f"source.test_share is {self.test_share}; a share lies between 0 and 1")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"source.max_bad_share is {self.max_bad_share}; a share lies between 0 and 1")


@dataclass
class CaptionedPicture:
    """One picture of a source: its file as it is, and what is said about it."""

    split: str
    key: str  # the source's own name of it, of any form
    ending: str  # of the file, one of IMAGE_FIELDS
    image: bytes
    captions: list[str]  # at least one
    more: dict[str, Any] = field(default_factory=dict)  # JSON values, kept with it

    @property
    def pictures(self) -> list[tuple[str, bytes]]:
        """Ending and content."""
        return [(self.ending, self.image)]

    @property
    def record(self) -> dict[str, Any]:
        """The sample's JSON."""
        empty: dict[str, Any] = {"questions": [], "scene": None, "texts": []}
        return {CAPTIONS: self.captions, **empty, "key": self.key, **self.more}


@dataclass
class DocumentSample:
    """One document of a source: any number of pictures, and what they belong to."""

    split: str
    key: str  # the source's own name of it, of any form
    pictures: list[tuple[str, bytes]]  # ending (one of IMAGE_FIELDS) and content of each, in order
    said: dict[str, Any]  # what its form reads (docs/data.md)

    @property
    def record(self) -> dict[str, Any]:
        """The sample's JSON."""
        return {**self.said, PICTURES: len(self.pictures), "key": self.key}


@dataclass
class Unusable:
    """A sample of a source that cannot be used, and why."""

    key: str
    reason: str


class SampleSource(ABC):
    """Samples that people give, read once from beginning to end."""

    name: str
    splits: tuple[str, ...] = (TRAIN, TEST)
    max_bad_share: float = 0.0
    unit: str = "images"  # what `size` and the positions of `samples` count
    noun: str = "pictures"  # what its samples are

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON values that are equal exactly where the samples are. Raises UserError: there are none."""

    @abstractmethod
    def size(self) -> int:
        """How many units there are."""

    @abstractmethod
    def samples(self) -> Iterator[tuple[int, CaptionedPicture | DocumentSample | Unusable]]:
        """Every sample, with the number of units that are read by then, always in the same order."""

    def remarks(self) -> list[str]:
        """What a user should know of the samples once they are read: sentences."""
        return []


def is_test(key: str, share: float) -> bool:
    """Whether the sample called `key` is one of the `share` of test samples."""
    return key_hash(key) < share


def key_hash(key: str) -> float:
    """A number in [0, 1) that depends on the key alone; uniform over keys."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:_HASH_BYTES], "big") / 2 ** (8 * _HASH_BYTES)


def listing_fingerprint(root: Path, files: Iterable[Path]) -> str:
    """Of the files' names below `root`, sizes and times of change: files are too large to be read for it."""
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(f"{file.relative_to(root).as_posix()}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def require_folder(setting: str, folder: str | None, what: str = "pictures") -> Path:
    """The folder that a setting names. Raises UserError where none is named, or there is none."""
    if not folder:
        raise UserError(f"{setting} is not set; give the folder of your {what}")
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{setting}: there is no folder {folder}")
    return path
