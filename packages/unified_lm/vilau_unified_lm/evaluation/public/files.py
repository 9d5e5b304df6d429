"""Official files of public data sets: found, parsed and checked, with one sentence for what is missing or malformed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vilau_common.errors import UserError

Value = TypeVar("Value")

_TYPES = {str: "a string", int: "a whole number", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Layout:
    """Where a data set lies. setting: what names the directory; source: where the files come from."""

    setting: str
    directory: Path
    source: str

    def __post_init__(self) -> None:
        if not self.directory.is_dir():
            raise UserError(f"{self.setting}={self.directory}: there is no such directory")

    def file(self, name: str) -> Path:
        """A file of the data set. Raises UserError where it is missing."""
        path = self.directory / name
        if not path.is_file():
            raise UserError(
                f"{self.setting}={self.directory}: {name} is missing; it comes from {self.source}"
            )
        return path

    def check_pictures(self, pictures: Iterable[Path]) -> None:
        """Raises UserError, naming one of them, where pictures are missing."""
        wanted = list(dict.fromkeys(pictures))
        missing = [path for path in wanted if not path.is_file()]
        if missing:
            shown = missing[0].relative_to(self.directory)
            raise UserError(
                f"{self.setting}={self.directory}: {len(missing)} of {len(wanted)} pictures are missing, such as "
                f"{shown}; they come from {self.source}"
            )


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises UserError where it holds something else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of Unicode, too
        raise UserError(f"{path} is no JSON: {error}") from None


def read_json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(where it stands, object) of each line with one. Raises UserError, naming the line, where one holds none."""
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:  # of Unicode, too
            raise UserError(f"{where} is no JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: expected an object")
        records.append((where, record))
    if not records:
        raise UserError(f"{path} is empty")
    return records


def entry(record: Any, key: str, kind: type[Value], where: str) -> Value:
    """record[key] of the type `kind`. Raises UserError, naming `where` it lacks."""
    value = record.get(key) if isinstance(record, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: expected {_TYPES[kind]} named {key!r}")
    return value


def objects(record: Any, key: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, object) of each of the list record[key] of a JSON file. Raises UserError where it has none."""
    listed = entry(record, key, list, str(path))
    if not listed:
        raise UserError(f"{path}: the list {key!r} is empty")
    for number, item in enumerate(listed):
        where = f"{path}, {key}[{number}]"
        if not isinstance(item, dict):
            raise UserError(f"{where}: expected an object")
        yield where, item
