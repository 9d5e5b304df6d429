"""Sources whose samples are records of JSON files that name picture files: what they have in common.

<records>/a.jsonl     one record a line; or a.json, a list of records
<folder>/…            the files that the records name
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import IMAGE_FIELDS
from vilau_common.data.sources.base import (
    TEST,
    TRAIN,
    DocumentSample,
    SamplesConfig,
    SampleSource,
    Unusable,
    is_test,
    listing_fingerprint,
    require_folder,
)
from vilau_common.errors import UserError

RECORD_ENDINGS = (".json", ".jsonl")


@dataclass(kw_only=True)
class RecordsConfig(SamplesConfig):
    """records: a .jsonl file (a record a line), a .json file (a list of records), or a folder of such files. folder:
    where the pictures are that the records name; null: where the records are.
    """

    records: str | None = None
    folder: str | None = None


class RecordSource(SampleSource):
    """Samples that are records. A sample is on the side of its first picture: train and test share no first picture."""

    unit = "records"
    noun = "records"

    def __init__(self, config: RecordsConfig) -> None:
        """Reads the records, no pictures. Raises UserError where there are none, or one is not JSON."""
        self.max_bad_share = config.max_bad_share
        self.test_share = config.test_share
        self.root, self.files = find_files("source.records", config.records, RECORD_ENDINGS)
        self.folder = require_folder("source.folder", config.folder) if config.folder else self.root
        self._count, self._fingerprint = self._scanned()

    @abstractmethod
    def named(self, record: dict[str, Any]) -> list[str]:
        """The files that a record names, in order. Raises BadSample where it is no record of this source."""

    @abstractmethod
    def document(self, record: dict[str, Any]) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
        """A record's pictures and what its form reads, as in `DocumentSample`. Raises BadSample."""

    def identity(self) -> dict[str, Any]:
        return {"test_share": self.test_share, "records": self._fingerprint}

    def size(self) -> int:
        return self._count

    def samples(self) -> Iterator[tuple[int, DocumentSample | Unusable]]:
        for number, (key, record) in enumerate(self._records(), start=1):
            try:
                names = self.named(_object(record))
                pictures, said = self.document(record)
            except BadSample as error:
                yield number, Unusable(key, str(error))
                continue
            split = TEST if is_test(names[0] if names else key, self.test_share) else TRAIN
            yield number, DocumentSample(split, key, pictures, said)

    def picture(self, name: str) -> tuple[str, bytes]:
        """Ending and content of a picture file. Raises BadSample where there is none."""
        ending = Path(name).suffix[1:].lower()
        if ending not in IMAGE_FIELDS:
            raise BadSample(f"{name} does not end as a picture does ({', '.join(IMAGE_FIELDS)})")
        try:
            return ending, (self.folder / name).read_bytes()
        except OSError as error:
            raise BadSample(f"{self.folder / name} cannot be read: {error.strerror}") from None

    def _records(self) -> Iterator[tuple[str, Any]]:
        """Every record, and its key: its file and its number there."""
        for file in self.files:
            for number, (_, record) in enumerate(json_records(file), start=1):
                yield f"{file.relative_to(self.root).as_posix()}:{number}", record

    def _scanned(self) -> tuple[int, str]:
        """How many records there are, and a fingerprint of them and the files they name."""
        digest = hashlib.sha256(listing_fingerprint(self.root, self.files).encode())
        count = 0
        for _, record in self._records():
            count += 1
            try:
                names = self.named(_object(record))
            except BadSample:
                continue
            for name in names:
                # One that comes later must not be taken for prepared.
                try:
                    state = (self.folder / name).stat()
                    digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
                except OSError:
                    digest.update(f"{name}\0missing\0".encode())
        return count, digest.hexdigest()


def find_files(setting: str, path: str | None, endings: Sequence[str]) -> tuple[Path, list[Path]]:
    """A file, or those of a folder, subfolders included, with one of the endings; first the folder they are in.

    Raises UserError where there are none.
    """
    what = " or ".join(f"*{ending}" for ending in endings)
    if not path:
        raise UserError(f"{setting} is not set; give a file ({what}) or a folder of such files")
    place = Path(path)
    if place.is_file() and place.suffix in endings:
        return place.parent, [place]
    files = sorted(file for file in place.rglob("*") if file.suffix in endings)
    if not files:
        raise UserError(f"{setting}: no {what} in {path}")
    return place, files


def json_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each record of a .json or .jsonl file stands, and what it is. Raises UserError for what is no JSON."""
    if path.suffix == ".jsonl":
        yield from json_lines(path)
        return
    try:
        records = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; one record a line belongs in a .jsonl file") from None
    if not isinstance(records, list):
        raise UserError(f"{path} holds no list of records; one record a line belongs in a .jsonl file")
    for number, record in enumerate(records, start=1):
        yield f"{path}, record {number}", record


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each line of a file stands, and what it is. Raises UserError for one that is no JSON in UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    record = json.loads(line.decode("utf-8"))
                except ValueError as error:  # a UnicodeDecodeError is one
                    raise UserError(f"{path}, line {number} is not JSON: {error}") from None
                yield f"{path}, line {number}", record


def _object(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise BadSample("the record is no object")
    return record
