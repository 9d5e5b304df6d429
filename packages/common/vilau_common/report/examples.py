"""The examples that an evaluation leaves to be looked at: RUN/evaluation/examples.json and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from vilau_common.errors import UserError

Flags = tuple[bool, ...]
Paths = tuple[Path, ...]
Texts = tuple[str, ...]


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
class Strip:
    """A row of pictures that belong together: a video, an edit, shots or a story."""

    pictures: Paths
    labels: Texts  # empty, or one a picture
    kind: str
    text: str  # what was asked
    outcome: str  # what the model wrote, or the verifier reads
    right: bool
    held_out: bool


@dataclass(frozen=True)
class Examples:
    """All of examples.json; lists that it lacks are empty. Paths are those of existing files."""

    reconstructions: list[Reconstruction] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    captions: list[Caption] = field(default_factory=list)
    videos: list[Strip] = field(default_factory=list)
    edits: list[Strip] = field(default_factory=list)
    shots: list[Strip] = field(default_factory=list)
    stories: list[Strip] = field(default_factory=list)


Entry = TypeVar("Entry", Reconstruction, Drawing, Answer, Caption, Strip)


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
        videos=read("videos", Strip),
        edits=read("edits", Strip),
        shots=read("shots", Strip),
        stories=read("stories", Strip),
    )


def _entry(kind: type[Entry], entry: Any, where: str, directory: Path) -> Entry:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is no object: evaluate the run again")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for member in fields(kind):
        name = member.name
        if name not in entry:
            raise UserError(f"{where} lacks {name!r}: evaluate the run again")
        value, hint = entry[name], hints[name]
        told, holds = _EXPECTED[hint]
        if not holds(value):
            raise UserError(f"{where}: {name!r} must be {told}, not {value!r}: evaluate the run again")
        if hint is Path:
            value = _picture(directory, value, where)
        elif hint == Paths:
            value = [_picture(directory, one, where) for one in value]
        values[name] = tuple(value) if isinstance(value, list) else value
    if kind is Strip and values["labels"] and len(values["labels"]) != len(values["pictures"]):
        counts = f"{len(values['labels'])} labels, but {len(values['pictures'])} pictures"
        raise UserError(f"{where} has {counts}: evaluate the run again")
    return kind(**values)


_EXPECTED: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("a text", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    Path: ("the path of a picture", lambda value: isinstance(value, str)),
    Flags: ("a list of true and false", lambda value: _all(value, bool)),
    Paths: ("a list of paths of pictures", lambda value: _all(value, str)),
    Texts: ("a list of texts", lambda value: _all(value, str)),
}


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _picture(directory: Path, name: str, where: str) -> Path:
    """The file of that name; only files inside the directory are ever shown, so that a report gives away no other."""
    path = (directory / name).resolve()
    if not path.is_relative_to(directory.resolve()) or not path.is_file():
        raise UserError(f"{where}: there is no picture {name!r} in {directory}: evaluate the run again")
    return path
