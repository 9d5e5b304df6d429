"""Tars of pictures with captions as img2dataset writes them (COYO, LAION, DataComp), and WebDatasets like them.

    <folder>/00000.tar …   KEY.jpg, KEY.txt (the caption) and KEY.json (whatever the list of pictures told)

Everything is read once and written as data sets of ours, picture files as they are. Where it is too much to be written
again, `rewrite=false` leaves the training tars where they are (`sources.linked`).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import IMAGE_FIELDS, JSON_FIELD, TEXT_FIELD, captions_field, json_field
from vilau_common.data.sources.base import (
    TEST,
    TRAIN,
    CaptionedPicture,
    SamplesConfig,
    SampleSource,
    Unusable,
    is_test,
    key_hash,
    listing_fingerprint,
    require_folder,
)
from vilau_common.data.tar_members import BLOCK, split_member_name, tar_members
from vilau_common.errors import UserError

_END_MARK = bytes(2 * BLOCK)


@dataclass(kw_only=True)
class WebDatasetConfig(SamplesConfig):
    """Tars of img2dataset's form.

    folder: where the tars are, subfolders included; test_folder: tars of test pictures, where they stand apart (then
    test_share is not used). caption_key: `txt` takes the text file, anything else that key of the JSON (a text or a
    list of texts). rewrite: false trains from the tars as they are; then whole tars are set apart for the test.
    """

    folder: str | None = None
    test_folder: str | None = None
    caption_key: str = TEXT_FIELD
    rewrite: bool = True


class WebDatasetSource(SampleSource):
    """See the module's docstring."""

    name = "webdataset"
    unit = "tars"

    def __init__(self, config: WebDatasetConfig) -> None:
        """Looks at names, ends and one sample. Raises UserError where there are no tars, captions, or half a tar."""
        self.config = config
        self.max_bad_share = config.max_bad_share
        self.folder = require_folder("source.folder", config.folder)
        self.tars = find_tars(self.folder)
        self.test_tars: list[Path] = []
        self._test_folder = self.folder
        if config.test_folder is not None:
            self._test_folder = require_folder("source.test_folder", config.test_folder)
            self.test_tars = find_tars(self._test_folder)
        elif not config.rewrite:
            self.tars, self.test_tars = _apart(self.folder, self.tars, config.test_share)
        for tar in (self.tars[0], *self.test_tars[:1]):
            _require_captions(tar, config.caption_key)
        if not config.rewrite:
            self.splits = (TEST,)

    def identity(self) -> dict[str, Any]:
        return {
            "caption_key": self.config.caption_key,
            "rewrite": self.config.rewrite,
            "test_share": self.config.test_share,
            "tars": listing_fingerprint(self.folder, self.tars),
            "test_tars": listing_fingerprint(self._test_folder, self.test_tars),
        }

    def size(self) -> int:
        return len(self._read())

    def samples(self) -> Iterator[tuple[int, CaptionedPicture | Unusable]]:
        for finished, (tar, split) in enumerate(self._read()):
            for key, fields in tar_samples(tar):
                yield finished, self._picture(f"{tar.stem}/{key}", fields, split)

    def _read(self) -> list[tuple[Path, str | None]]:
        """The tars to read, each with the split of all its pictures, or None where each has its own."""
        test: list[tuple[Path, str | None]] = [(tar, TEST) for tar in self.test_tars]
        if not self.config.rewrite:
            return test
        return [*((tar, TRAIN if test else None) for tar in self.tars), *test]

    def _picture(self, key: str, fields: dict[str, bytes], split: str | None) -> CaptionedPicture | Unusable:
        field = next((field for field in IMAGE_FIELDS if field in fields), None)
        if field is None:
            return Unusable(key, f"no picture among {', '.join(sorted(fields))}")
        try:
            captions = captions_field(fields, self.config.caption_key)
            more = {"record": json_field(fields)} if JSON_FIELD in fields else {}
        except BadSample as error:
            return Unusable(key, str(error))
        if split is None:
            split = TEST if is_test(key, self.config.test_share) else TRAIN
        return CaptionedPicture(split, key, field, fields[field], captions, more)


def find_tars(folder: Path) -> list[Path]:
    """The tars below `folder`, in order. Raises UserError where there are none, or one is cut off."""
    tars = sorted(folder.rglob("*.tar"))
    if not tars:
        raise UserError(f"no .tar files in {folder}; for single picture files take source=image_folder")
    for tar in tars:
        with tar.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - len(_END_MARK)))
            if size % BLOCK or file.read() != _END_MARK:
                raise UserError(f"{tar} is cut off in the middle: fetch it again, or take it out of {folder}")
    return tars


def tar_samples(tar: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, field -> content) of every sample of a tar. Raises UserError where it is damaged."""
    current: str | None = None
    fields: dict[str, bytes] = {}
    try:
        with tar.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for name, content in tar_members(data):
                key, field = split_member_name(name)
                if key != current:
                    if current is not None:
                        yield current, fields
                    current, fields = key, {}
                fields[field.lower()] = content
    except (OSError, ValueError) as error:
        raise UserError(f"{tar} cannot be read: {error}") from error
    if current is not None:
        yield current, fields


def _apart(folder: Path, tars: Sequence[Path], share: float) -> tuple[list[Path], list[Path]]:
    """(training tars, test tars): of the test are those whose names have the lowest hashes, at least one."""
    if len(tars) < 2:
        raise UserError(
            f"{folder} has one tar alone, and with source.rewrite=false whole tars are set apart for the test: give "
            "source.test_folder, or source.rewrite=true"
        )
    count = min(len(tars) - 1, max(1, round(share * len(tars))))
    test = set(sorted(tars, key=lambda tar: key_hash(tar.relative_to(folder).as_posix()))[:count])
    return [tar for tar in tars if tar not in test], sorted(test)


def _require_captions(tar: Path, caption_key: str) -> None:
    """Before hours of reading: the first picture must have its caption where it is said to be."""
    for key, fields in tar_samples(tar):
        if not any(field in fields for field in IMAGE_FIELDS):
            continue
        try:
            captions_field(fields, caption_key)
            return
        except BadSample as error:
            try:
                record = json_field(fields)
            except BadSample:
                record = {}
            texts = [name for name, value in record.items() if isinstance(value, str | list) and value]
            there = ([TEXT_FIELD] if TEXT_FIELD in fields else []) + texts
            raise UserError(
                f"{tar}: the first picture, {key}, has no caption ({error}); source.caption_key is {caption_key}, and "
                f"it has {', '.join(there) or 'no texts at all'}"
            ) from None
    raise UserError(f"{tar} holds no pictures ({', '.join(IMAGE_FIELDS)})")
