"""Data sets on disk: WebDataset tar shards with an index for Megatron-Energon and a `dataset.json`.

    <directory>/00000.tar …        files `<key>.<field>`, a sample's files side by side
    <directory>/00000.tar.idx …    where each sample begins
    <directory>/.nv-meta/          Megatron-Energon's description
    <directory>/dataset.json       `DatasetInfo`

The same samples give the same tar files, byte for byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import mmap
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vilau_common.atomic import begin_directory, commit_directory
from vilau_common.data.fields import CAPTIONS
from vilau_common.data.tar_members import split_member_name, tar_members
from vilau_common.errors import UserError

DATASET_FILE = "dataset.json"
CAPTION_KEY = "caption_key"  # in `DatasetInfo.info`
DEFAULT_HINT = "`vilau prepare` makes it"

# A USTAR name holds 100 bytes; the key leaves room for its field.
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
_FIELD = re.compile(r"[A-Za-z0-9]+(\.[A-Za-z0-9]+)*")
_FILE_MODE = 0o644


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` holds."""

    samples: int
    fingerprint: str  # sha256 of every key, field and content, in order
    shards: dict[str, int]  # file name -> samples in it
    fields: list[str]  # the fields that occur, sorted
    info: dict[str, Any]  # whatever the maker of the data set wants to be known

    @property
    def caption_key(self) -> str:
        """Where the samples have their captions, as `captions_field` takes it."""
        return str(self.info.get(CAPTION_KEY, CAPTIONS))

    @property
    def linked(self) -> bool:
        """Whether these are other people's tars as they are (`sources.linked`): keys and JSON are of any form."""
        return CAPTION_KEY in self.info


class ShardWriter:
    """Writes one data set; a context manager.

        with ShardWriter(directory, {"world": "scenes"}, samples_per_shard=1000) as writer:
            writer.write("000000", {"png": png_bytes, "json": json_bytes})

    Everything goes to a temporary sibling of `directory`, which takes its place when the block ends without an
    exception: a killed or failed run leaves neither half a data set nor a lost old one.
    """

    def __init__(self, directory: Path | str, info: Mapping[str, Any], *, samples_per_shard: int) -> None:
        """`info`: JSON values; `samples_per_shard`: at least 1."""
        if samples_per_shard < 1:
            raise UserError(f"samples_per_shard is {samples_per_shard}; it has to be at least 1")
        self.directory = Path(directory)
        self.samples = 0
        self._info = dict(info)
        self._samples_per_shard = samples_per_shard
        self._temporary: Path | None = None  # while the block is entered
        self._shards: dict[str, int] = {}
        self._fields: set[str] = set()
        self._keys: set[str] = set()
        self._hash = hashlib.sha256()
        self._archive: tarfile.TarFile | None = None

    def __enter__(self) -> ShardWriter:
        self._temporary = begin_directory(self.directory)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._temporary is not None
        self._close_shard()
        try:
            if kind is None:
                self._finish(self._temporary)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)  # gone already where all went well
            self._temporary = None

    def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Append a sample. `key`: unique, letters, digits, `_` and `-`; `fields`: file ending -> content.

        Raises ValueError for a key or field that WebDataset cannot hold.
        """
        assert self._temporary is not None, "samples are written inside the with block"
        if _KEY.fullmatch(key) is None or "__" in key:
            raise ValueError(
                f"'{key}' cannot be a sample's key: 80 letters, digits, single '_' and '-' at most"
            )
        if key in self._keys:
            raise ValueError(f"two samples have the key '{key}'")
        if not fields:
            raise ValueError(f"sample '{key}' has no fields")
        self._keys.add(key)
        name = f"{self.samples // self._samples_per_shard:05d}.tar"
        if name not in self._shards:
            self._close_shard()
            self._archive = tarfile.TarFile(self._temporary / name, "w", format=tarfile.USTAR_FORMAT)
            self._shards[name] = 0
        assert self._archive is not None
        for field, content in fields.items():
            if _FIELD.fullmatch(field) is None:
                raise ValueError(f"'{field}' cannot be the ending of a file in a shard")
            member = tarfile.TarInfo(f"{key}.{field}")  # owner and time stay 0: the same bytes every time
            member.size, member.mode = len(content), _FILE_MODE
            self._archive.addfile(member, io.BytesIO(content))
            self._hash.update(f"{key}.{field}:{len(content)}:".encode())
            self._hash.update(content)
        self._fields.update(fields)
        self._shards[name] += 1
        self.samples += 1

    def _close_shard(self) -> None:
        if self._archive is not None:
            self._archive.close()
            self._archive = None

    def _finish(self, temporary: Path) -> None:
        # Energon takes seconds to import, and those who only read shards need nothing of it.
        from vilau_common.data.energon_index import write_index

        if not self.samples:
            raise UserError(f"no samples to write to {self.directory}; a data set needs at least one")
        write_index(temporary, list(self._shards))
        description = DatasetInfo(
            self.samples, self._hash.hexdigest(), self._shards, sorted(self._fields), self._info
        )
        (temporary / DATASET_FILE).write_text(json.dumps(dataclasses.asdict(description), indent=2) + "\n")
        commit_directory(self.directory)


def dataset_info(directory: Path | str, *, hint: str = DEFAULT_HINT) -> DatasetInfo:
    """The description of the data set in `directory`.

    `hint` ends the sentence of the UserError that is raised when there is none: how to make it.
    """
    path = Path(directory) / DATASET_FILE
    try:
        return DatasetInfo(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"data set not prepared: {directory} has no {DATASET_FILE}; {hint}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); prepare the data set again: {hint}") from None


def is_prepared(directory: Path | str, info: Mapping[str, Any]) -> bool:
    """Whether `directory` holds a whole data set that was written with this `info`."""
    try:
        return dataset_info(directory).info == dict(info)
    except UserError:
        return False


def read_shards(directory: Path | str, *, hint: str = DEFAULT_HINT) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, field -> content) of every sample once, in the order in which they were written.

    Raises UserError where the data set is missing or a shard is damaged.
    """
    directory = Path(directory)
    for shard in dataset_info(directory, hint=hint).shards:
        path = directory / shard
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield from _samples(data)
        except (OSError, ValueError) as error:
            raise UserError(
                f"shard {path} cannot be read ({error}); prepare the data set again: {hint}"
            ) from error


def _samples(data: mmap.mmap) -> Iterator[tuple[str, dict[str, bytes]]]:
    current: str | None = None
    fields: dict[str, bytes] = {}
    for name, content in tar_members(data):
        key, field = split_member_name(name)
        if key != current:
            if current is not None:
                yield current, fields
            current, fields = key, {}
        fields[field] = content
    if current is not None:
        yield current, fields
