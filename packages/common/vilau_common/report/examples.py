"""The examples that an evaluation leaves to be looked at: RUN/evaluation/examples.json and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from vilau_common.errors import UserError

Flags = tuple[bool, ...]


@dataclass(frozen=True)
class Reconstruction:
    """A picture, and the same drawn again from its codes."""

    original: Path
    reconstruction: Path
    caption: str
    right: bool  # the verifier reads both alike


@dataclass(frozen=True)
class Drawing:
    """A picture drawn from a prompt."""

    prompt: str
    kind: str
    picture: Path
    right: Flags  # one for each object asked for
    picture_right: bool
    reading: str  # what the verifier reads
    held_out: bool  # the prompt has a combination of attributes that training never showed


@dataclass(frozen=True)
class Answer:
    """A question about a picture and the model's answer."""

    picture: Path
    question: str
    kind: str
    answer: str
    expected: str
    right: bool


@dataclass(frozen=True)
class Caption:
    """A description that the model wrote."""

    picture: Path
    caption: str
    expected: str
    right: bool


@dataclass(frozen=True)
class Examples:
    """All of examples.json; lists that it lacks are empty. Paths are those of existing files."""

    reconstructions: list[Reconstruction]
    drawings: list[Drawing]
    answers: list[Answer]
    captions: list[Caption]


Entry = TypeVar("Entry", Reconstruction, Drawing, Answer, Caption)


def parse_examples(contents: Any, directory: Path) -> Examples:
    """The decoded examples.json of `directory`. Raises UserError that names the first entry that is wrong."""
    file = directory / "examples.json"
    if not isinstance(contents, dict):
        raise UserError(f"{file} holds no object with lists of examples: evaluate the run again")

    def read(name: str, kind: type[Entry]) -> list[Entry]:
        listed = contents.get(name, [])
        if not isinstance(listed, list):
            raise UserError(f"{file}: {name} is no list: evaluate the run again")
        return [_entry(kind, entry, f"{file}: {name}[{i}]", directory) for i, entry in enumerate(listed)]

    return Examples(
        reconstructions=read("reconstructions", Reconstruction),
        drawings=read("drawings", Drawing),
        answers=read("answers", Answer),
        captions=read("captions", Caption),
    )


def _entry(kind: type[Entry], entry: Any, where: str, directory: Path) -> Entry:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is no object: evaluate the run again")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name not in entry:
            raise UserError(f"{where} lacks {field.name!r}: evaluate the run again")
        value, hint = entry[field.name], hints[field.name]
        told, holds = _EXPECTED[hint]
        if not holds(value):
            raise UserError(f"{where}: {field.name!r} must be {told}, not {value!r}: evaluate the run again")
        if hint is Path:
            value = _picture(directory, value, where)
        values[field.name] = tuple(value) if hint == Flags else value
    return kind(**values)


_EXPECTED: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("a text", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    Path: ("the path of a picture", lambda value: isinstance(value, str)),
    Flags: (
        "a list of true and false",
        lambda value: isinstance(value, list) and all(isinstance(item, bool) for item in value),
    ),
}


def _picture(directory: Path, name: str, where: str) -> Path:
    """The file of that name; only files inside the directory are ever shown, so that a report gives away no other."""
    path = (directory / name).resolve()
    if not path.is_relative_to(directory.resolve()) or not path.is_file():
        raise UserError(f"{where}: there is no picture {name!r} in {directory}: evaluate the run again")
    return path
