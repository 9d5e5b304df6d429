"""Plain text: .txt files, each one text, and .jsonl or .json files of records with a text.

Long texts are divided at ends of lines, so that a book is many samples, which shuffling can mix with others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vilau_common.data.sources.base import (
    TEST,
    TRAIN,
    DocumentSample,
    SamplesConfig,
    SampleSource,
    Unusable,
    is_test,
    listing_fingerprint,
)
from vilau_common.data.sources.records import RECORD_ENDINGS, find_files, json_records
from vilau_common.errors import UserError

TEXTS = "texts"  # where a sample's JSON has its text, in a list

# Characters of a sample; some 25,000 tokens.
LONGEST_TEXT = 100_000


@dataclass(kw_only=True)
class TextConfig(SamplesConfig):
    """records: a .txt, .jsonl or .json file, or a folder of such files. text_key: of the text in a record."""

    records: str | None = None
    text_key: str = "text"


class Text(SampleSource):
    """See the module's docstring."""

    name = "text"
    unit = "files"
    noun = "texts"

    def __init__(self, config: TextConfig) -> None:
        """Raises UserError where there are no files."""
        self.config = config
        self.max_bad_share = config.max_bad_share
        self.root, self.files = find_files("source.records", config.records, (".txt", *RECORD_ENDINGS))

    def identity(self) -> dict[str, Any]:
        return {
            "test_share": self.config.test_share,
            "text_key": self.config.text_key,
            "longest": LONGEST_TEXT,
            "files": listing_fingerprint(self.root, self.files),
        }

    def size(self) -> int:
        return len(self.files)

    def samples(self) -> Iterator[tuple[int, DocumentSample | Unusable]]:
        for finished, file in enumerate(self.files):
            texts = enumerate(self._texts(file), start=1)
            for number, text in texts:
                key = f"{file.relative_to(self.root).as_posix()}:{number}"
                if not isinstance(text, str):
                    yield finished, Unusable(key, f"no text under {self.config.text_key}")
                elif not text.strip():
                    yield finished, Unusable(key, "an empty document: it holds no text")
                else:
                    for part, content in enumerate(divided(text, LONGEST_TEXT), start=1):
                        part_key = f"{key}.{part}"
                        split = TEST if is_test(part_key, self.config.test_share) else TRAIN
                        yield finished, DocumentSample(split, part_key, [], {TEXTS: [content]})

    def _texts(self, file: Any) -> Iterator[object]:
        if file.suffix == ".txt":
            try:
                yield file.read_text("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{file} is not UTF-8: {error}") from None
            return
        for _, record in json_records(file):
            yield record.get(self.config.text_key) if isinstance(record, dict) else None


def divided(text: str, longest: int) -> Iterator[str]:
    """The text in parts of at most `longest` characters, cut at ends of lines, else between words, else anywhere."""
    start, length = 0, len(text)
    while start < length:
        end = min(start + longest, length)
        if end < length:
            breaks = (text.rfind(mark, start + 1, end) for mark in ("\n", " "))
            end = next((place for place in breaks if place > start), end)
        part = text[start:end].strip()
        if part:
            yield part
        start = end
