"""Plain text: files and records, long ones divided."""

from __future__ import annotations

from pathlib import Path

import pytest
from source_toys import run_prepare_documents, write_lines

from vilau_common.data.shards import dataset_info
from vilau_common.data.sources import text as module
from vilau_common.data.sources.base import Unusable
from vilau_common.data.sources.text import Text, TextConfig, divided
from vilau_common.errors import UserError


def test_files_and_records_are_texts(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    write_lines(folder / "deep" / "a.jsonl", [{"text": f"record {n}", "id": n} for n in range(30)])
    (folder / "b.txt").write_text("A whole file.\n\nOf two paragraphs.\n")
    (folder / "c.md").write_text("not read")
    config = TextConfig(records=str(folder), test_share=0.3)
    found = run_prepare_documents(config, tmp_path / "data", vocabulary_size=300)
    texts = [text for samples in found.values() for stored in samples for text in stored.record["texts"]]
    assert sorted(texts) == sorted(
        [f"record {n}" for n in range(30)] + ["A whole file.\n\nOf two paragraphs."]
    )
    for split, samples in found.items():
        assert samples and all(not stored.pictures and stored.record["pictures"] == 0 for stored in samples)
        assert dataset_info(tmp_path / "data" / split).fields == ["json"]
    assert (tmp_path / "data" / "tokenizer" / "tokenizer.json").is_file()


@pytest.mark.parametrize("longest", [1, 2, 5, 9, 40, 10_000])
@pytest.mark.parametrize("text", ["one two\nthree four five\n\nsix seven", "a" * 50, "x y\n" * 20])
def test_long_texts_are_divided_and_nothing_is_lost(text: str, longest: int) -> None:
    parts = list(divided(text, longest))
    assert all(0 < len(part) <= longest for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())
    if longest >= len(text):
        assert parts == [text.strip()]


def test_lines_end_parts_before_words_do() -> None:
    assert list(divided("one two\nthree four five six", 12)) == ["one two", "three four", "five six"]


def test_a_book_is_many_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_TEXT", 100)
    (tmp_path / "book.txt").write_text("\n".join(f"line number {n}" for n in range(200)))
    config = TextConfig(records=str(tmp_path / "book.txt"), test_share=0.3)
    found = run_prepare_documents(config, tmp_path / "data")
    assert {len(samples) > 3 for samples in found.values()} == {True}
    lines = [
        line
        for samples in found.values()
        for stored in samples
        for line in stored.record["texts"][0].splitlines()
    ]
    assert sorted(lines) == sorted(f"line number {n}" for n in range(200))


def test_empty_and_missing_texts_are_told(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": " \n"}, {"body": "a"}, ["a"], {"text": "good"}])
    empty, missing, other, good = [one for _, one in Text(TextConfig(records=str(path))).samples()]
    assert isinstance(empty, Unusable) and "an empty document" in empty.reason
    for unusable in (missing, other):
        assert isinstance(unusable, Unusable) and unusable.reason == "no text under text"
    assert good.record["texts"] == ["good"]
    assert [
        one.record["texts"]
        for _, one in Text(TextConfig(records=str(path), text_key="body")).samples()
        if not isinstance(one, Unusable)
    ] == [["a"]]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="latin.txt is not UTF-8"):
        list(Text(TextConfig(records=str(tmp_path / "latin.txt"))).samples())
    with pytest.raises(UserError, match=r"source.records: no \*.txt or \*.jsonl? or"):
        Text(TextConfig(records=str(tmp_path / "nowhere")))
