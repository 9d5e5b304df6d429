"""What a source of captioned pictures is, and how its pictures are divided into training and test ones."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vilau_common.errors import UserError

TRAIN, TEST = "train", "test"

_HASH_BYTES = 8


@dataclass(kw_only=True)
class SourceConfig:
    """What every source is configured by: nothing. Each kind derives from it."""


@dataclass(kw_only=True)
class PicturesConfig(SourceConfig):
    """Pictures with captions.

    test_share: of the pictures, set apart by a hash of their keys: a picture stays on its side when others come or
    go. max_bad_share: of pictures without a caption, or damaged ones, left out before it counts as a mistake.
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


@dataclass
class Unusable:
    """A picture of a source that cannot be used, and why."""

    key: str
    reason: str


class PictureSource(ABC):
    """Pictures with captions, read once from beginning to end."""

    name: str
    splits: tuple[str, ...] = (TRAIN, TEST)
    max_bad_share: float = 0.0
    unit: str = "images"  # what `size` and `position` count

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON values that are equal exactly where the pictures and captions are. Raises UserError: there are none."""

    @abstractmethod
    def size(self) -> int:
        """How many units there are."""

    @abstractmethod
    def pictures(self) -> Iterator[tuple[int, CaptionedPicture | Unusable]]:
        """Every picture, with the number of units that are read by then, always in the same order."""


def is_test(key: str, share: float) -> bool:
    """Whether the picture called `key` is one of the `share` of test pictures."""
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


def require_folder(setting: str, folder: str | None) -> Path:
    """The folder that a setting names. Raises UserError where none is named, or there is none."""
    if not folder:
        raise UserError(f"{setting} is not set; give the folder of your pictures")
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{setting}: there is no folder {folder}")
    return path
