"""Turning a folder of captioned pictures into a data set.

Captions stand beside the pictures, in one of these ways:

    captions.jsonl   one object a line: {"file": "a/b.jpg", "caption": "…"} or {"file": …, "captions": ["…", "…"]}
    captions.csv     columns `file` and `caption`; a file may occur several times
    <picture>.txt    beside each picture, one caption a line
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

from vilau_common.data.fields import IMAGE_FIELDS, JSON_FIELD
from vilau_common.data.shards import ShardWriter
from vilau_common.errors import UserError

_SAMPLES_BETWEEN_CALLS = 100


def prepare_image_folder(
    folder: Path, directory: Path, *, samples_per_shard: int, progress: Callable[[int, int], None]
) -> None:
    """Write the pictures of `folder` (png, jpg, jpeg, webp; subfolders included) to the data set `directory`.

    The files go into the shards as they are. `progress` is called with the number of pictures written and their
    total. Raises UserError where there are no pictures, or pictures without captions.
    """
    pictures = sorted(path for path in folder.rglob("*") if _field(path) in IMAGE_FIELDS)
    if not pictures:
        raise UserError(f"no pictures ({', '.join(IMAGE_FIELDS)}) in {folder}")
    captions = read_captions(folder, pictures)
    missing = [path for path in pictures if not captions.get(path)]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(pictures):,} pictures in {folder} have no caption, such as {missing[0]}; "
            "give them in captions.jsonl, captions.csv or a .txt file beside each picture"
        )
    with ShardWriter(directory, {"folder": folder.name}, samples_per_shard=samples_per_shard) as writer:
        for number, path in enumerate(pictures):
            record = {
                "captions": captions[path],
                "questions": [],
                "scene": None,
                "texts": [],
                "file": path.relative_to(folder).as_posix(),
            }
            content = json.dumps(record, ensure_ascii=False).encode()
            writer.write(f"{number:08d}", {_field(path): path.read_bytes(), JSON_FIELD: content})
            if writer.samples % _SAMPLES_BETWEEN_CALLS == 0 or writer.samples == len(pictures):
                progress(writer.samples, len(pictures))


def read_captions(folder: Path, pictures: list[Path]) -> dict[Path, list[str]]:
    """The captions of each picture that has any. Raises UserError for a caption file that cannot be read."""
    lines, table = folder / "captions.jsonl", folder / "captions.csv"
    if lines.exists():
        return _from_jsonl(folder, lines)
    if table.exists():
        return _from_csv(folder, table)
    captions = {}
    for path in pictures:
        beside = path.with_suffix(".txt")
        if beside.exists():
            captions[path] = [line.strip() for line in beside.read_text("utf-8").splitlines() if line.strip()]
    return captions


def _from_jsonl(folder: Path, path: Path) -> dict[Path, list[str]]:
    captions: dict[Path, list[str]] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                texts = record["captions"] if "captions" in record else [record["caption"]]
                if not all(isinstance(text, str) for text in texts):
                    raise TypeError("a caption is not a text")
                captions.setdefault(folder / record["file"], []).extend(texts)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f'{path}, line {number}: expected {{"file": ..., "caption": ...}} ({error!r})'
                ) from None
    return captions


def _from_csv(folder: Path, path: Path) -> dict[Path, list[str]]:
    captions: dict[Path, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        if not {"file", "caption"} <= set(table.fieldnames or ()):
            raise UserError(f"{path} needs the columns 'file' and 'caption'; it has {table.fieldnames}")
        for row in table:
            if row["caption"]:
                captions.setdefault(folder / row["file"], []).append(row["caption"])
    return captions


def _field(path: Path) -> str:
    return path.suffix[1:].lower()
