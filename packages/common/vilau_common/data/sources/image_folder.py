"""A folder of pictures, subfolders included, with captions in one of these ways:

captions.jsonl   one object a line: {"file_name": "a/b.jpg", "text": "…"}; also as metadata.jsonl, the name that
                 Hugging Face's imagefolder gives it. `file` may stand for file_name; `caption`, or a list
                 `captions`, for text. A file may occur several times.
captions.csv     the same as columns (also metadata.csv)
NAME.txt         beside NAME.jpg, one caption a line
class folders    with `class_templates`: the name of the first subfolder says what its pictures show
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vilau_common.data.fields import IMAGE_FIELDS
from vilau_common.data.sources.base import (
    TEST,
    TRAIN,
    CaptionedPicture,
    SamplesConfig,
    SampleSource,
    Unusable,
    is_test,
    listing_fingerprint,
    require_folder,
)
from vilau_common.data.sources.records import json_lines
from vilau_common.errors import UserError

LINES = ("captions.jsonl", "metadata.jsonl")
TABLES = ("captions.csv", "metadata.csv")
FILE_KEYS = ("file_name", "file")
CAPTION_KEYS = ("captions", "caption", "text")
CLASS = "class"  # where a sample's JSON has its class folder


@dataclass(kw_only=True)
class ImageFolderConfig(SamplesConfig):
    """A folder of pictures with captions.

    folder: the pictures; test_folder: all test pictures, where they stand apart (then test_share is not used).
    caption_key: of caption files, where not one of captions, caption, text. class_templates: texts with {} for the
    name of the class folder, such as 'a photo of a {}'; empty: captions come from files.
    """

    folder: str | None = None
    test_folder: str | None = None
    caption_key: str | None = None
    class_templates: list[str] = field(default_factory=list)


class ImageFolder(SampleSource):
    """See the module's docstring."""

    name = "image_folder"

    def __init__(self, config: ImageFolderConfig) -> None:
        """Reads names and captions, no pictures. Raises UserError where there are no folders, pictures or captions."""
        self.config = config
        self.max_bad_share = config.max_bad_share
        for template in config.class_templates:
            if "{}" not in template:
                raise UserError(f"source.class_templates: {template!r} has no {{}} for the class's name")
        folders = [require_folder("source.folder", config.folder)]
        if config.test_folder is not None:
            folders.append(require_folder("source.test_folder", config.test_folder))
        self._parts = [(folder, *self._read(folder)) for folder in folders]

    def identity(self) -> dict[str, Any]:
        return {
            "test_share": self.config.test_share,
            "class_templates": self.config.class_templates,
            "parts": [
                {
                    "files": listing_fingerprint(folder, files),
                    "captions": hashlib.sha256(
                        json.dumps([captions.get(file) for file in files]).encode()
                    ).hexdigest(),
                }
                for folder, files, captions in self._parts
            ],
        }

    def size(self) -> int:
        return sum(len(files) for _, files, _ in self._parts)

    def samples(self) -> Iterator[tuple[int, CaptionedPicture | Unusable]]:
        number = 0
        for index, (folder, files, captions) in enumerate(self._parts):
            for file in files:
                number += 1
                key = file.relative_to(folder).as_posix()
                said = captions.get(file)
                if not said:
                    yield number, Unusable(key, "no caption")
                    continue
                if len(self._parts) > 1:
                    split = (TRAIN, TEST)[index]
                else:
                    split = TEST if is_test(key, self.config.test_share) else TRAIN
                more = {CLASS: _class_of(folder, file)} if self.config.class_templates else {}
                yield number, CaptionedPicture(split, key, _ending(file), file.read_bytes(), said, more)

    def _read(self, folder: Path) -> tuple[list[Path], dict[Path, list[str]]]:
        """Its picture files in order, and the captions of those that have any."""
        files = sorted(path for path in folder.rglob("*") if _ending(path) in IMAGE_FIELDS)
        if not files:
            raise UserError(f"no pictures ({', '.join(IMAGE_FIELDS)}) in {folder}")
        if self.config.class_templates:
            return files, _class_captions(folder, files, self.config.class_templates)
        captions = read_captions(folder, files, self.config.caption_key)
        if not any(captions.get(file) for file in files):
            raise UserError(
                f"no captions for the {len(files):,} pictures in {folder}, such as {files[0]}: give them in "
                "captions.jsonl, captions.csv or a .txt file beside each picture; for class folders set "
                'source.class_templates=["a photo of a {}"]'
            )
        return files, captions


def read_captions(
    folder: Path, files: list[Path], caption_key: str | None, *, optional: bool = False
) -> dict[Path, list[str]]:
    """The captions of each picture that has any. Raises UserError for a caption file that cannot be read.

    optional: its lines may have none; a metadata.jsonl may hold labels alone.
    """
    for name in LINES:
        if (folder / name).exists():
            return _collected(folder, json_lines(folder / name), caption_key, optional)
    for name in TABLES:
        if (folder / name).exists():
            return _collected(folder, _rows(folder / name), caption_key, optional)
    captions = {}
    for path in files:
        beside = path.with_suffix(".txt")
        if beside.exists():
            captions[path] = [line.strip() for line in _said(beside).splitlines() if line.strip()]
    return captions


def _collected(
    folder: Path, records: Iterator[tuple[str, Any]], caption_key: str | None, optional: bool
) -> dict[Path, list[str]]:
    captions: dict[Path, list[str]] = {}
    keys = CAPTION_KEYS if caption_key is None else (caption_key,)
    for place, record in records:
        file = _first(record, FILE_KEYS)
        said = _first(record, keys)
        if optional and said is None:
            continue
        texts = [said] if isinstance(said, str) else said
        if not isinstance(file, str) or not isinstance(texts, list) or not all(map(_is_text, texts)):
            raise UserError(
                f'{place}: expected {{"file_name": …, "{keys[-1]}": …}} with a text or a list of texts, got {record}'
            )
        captions.setdefault(folder / file, []).extend(text.strip() for text in texts if text.strip())
    return captions


def _first(record: Any, keys: tuple[str, ...]) -> Any:
    if not isinstance(record, Mapping):
        return None
    return next((record[key] for key in keys if key in record), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    table = csv.DictReader(io.StringIO(_said(path), newline=""))
    try:
        for row in table:
            yield f"{path}, line {table.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}, line {table.line_num} cannot be read: {error}") from None


def _said(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}") from None


def _class_captions(folder: Path, files: list[Path], templates: list[str]) -> dict[Path, list[str]]:
    loose = next((file for file in files if file.parent == folder), None)
    if loose is not None:
        raise UserError(
            f"{loose} lies in no class folder: with source.class_templates every picture belongs in {folder}/<class>/"
        )
    names = {file: _class_of(folder, file).replace("_", " ") for file in files}
    return {file: [template.replace("{}", name) for template in templates] for file, name in names.items()}


def _class_of(folder: Path, file: Path) -> str:
    return file.relative_to(folder).parts[0]


def _ending(path: Path) -> str:
    return path.suffix[1:].lower()
