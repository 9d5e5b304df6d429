"""MMC4-style documents and editing triples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from source_toys import picture, run_prepare_documents, write_lines, write_pictures

from vilau_common.data.sources.base import Unusable
from vilau_common.data.sources.edits import Edits, EditsConfig
from vilau_common.data.sources.interleaved import Interleaved, InterleavedConfig
from vilau_common.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures, named by letters."""
    return write_pictures(tmp_path / "images", [f"{letter}.png" for letter in "abcd"])


def info(*images: tuple[str, int]) -> list[dict[str, Any]]:
    return [
        {"image_name": f"{letter}.png", "matched_text_index": index, "matched_sim": 0.3}
        for letter, index in images
    ]


def shown(sample: Any) -> list[tuple[str, bytes]]:
    assert sample.record["pictures"] == len(sample.pictures)
    return sample.pictures


def png(letter: str) -> tuple[str, bytes]:
    return "png", picture("abcd".index(letter))


def read(folder: Path, tmp_path: Path, *records: object) -> list[Any]:
    path = write_lines(tmp_path / "docs" / "shard_0.jsonl", records)
    config = InterleavedConfig(records=str(path.parent), folder=str(folder))
    return [sample for _, sample in Interleaved(config).samples()]


def test_images_stand_before_their_sentences(folder: Path, tmp_path: Path) -> None:
    texts = ["First.", " See <image> here. ", "", "Last."]
    (sample,) = read(
        folder,
        tmp_path,
        {"text_list": texts, "image_info": info(("c", 3), ("a", 1), ("b", 1), ("d", 2)), "url": "u"},
    )
    assert sample.record["interleaved"] == "First. <image><image>See here. <image> <image>Last."
    assert shown(sample) == [png("a"), png("b"), png("d"), png("c")]
    assert sample.record["key"] == "shard_0.jsonl:1"


def test_images_whose_links_died_are_left_out_and_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"text_list": ["One.", "Two."], "image_info": info(("x", 0), ("b", 1))}
    sample, lost = read(folder, tmp_path, record, {**record, "image_info": info(("x", 0), ("y", 1))})
    assert sample.record["interleaved"] == "One. <image>Two." and shown(sample) == [png("b")]
    assert isinstance(lost, Unusable) and "none of its 2 images is in" in lost.reason
    dead_first = [{**record, "image_info": info(("x", 0), (name, 1))} for name in "abcd" * 9]
    path = write_lines(tmp_path / "many.jsonl", dead_first)
    config = InterleavedConfig(records=str(path), folder=str(folder), test_share=0.5)
    # All have the same first image, which decides the side.
    with pytest.raises(UserError, match="none of the 36 documents of interleaved falls to the"):
        run_prepare_documents(config, tmp_path / "data")
    write_lines(path, [{**record, "image_info": info((name, 0), ("x", 1))} for name in "abcd" * 9])
    found = run_prepare_documents(config, tmp_path / "data")
    assert sum(map(len, found.values())) == 36
    assert "36 images are not in" in capsys.readouterr().out
    train, test = ({p for one in found[split] for p in one.pictures.values()} for split in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text_list": ["", " "], "image_info": info(("a", 0))}, "an empty document"),
        ({"text_list": [], "image_info": info(("a", 0))}, "an empty document"),
        ({"text_list": "One.", "image_info": info(("a", 0))}, "no text_list"),
        ({"text_list": ["One."]}, "no image_info"),
        ({"text_list": ["One."], "image_info": []}, "no image_info"),
        (
            {"text_list": ["One."], "image_info": info(("a", 1))},
            "matched_text_index of one of the 1 sentences",
        ),
        ({"text_list": ["One."], "image_info": info(("a", -1))}, "matched_text_index"),
        ({"text_list": ["One."], "image_info": ["a.png"]}, "has no image_name"),
    ],
)
def test_documents_that_cannot_be_used_are_told(
    folder: Path, tmp_path: Path, record: object, reason: str
) -> None:
    (unusable,) = read(folder, tmp_path, record)
    assert isinstance(unusable, Unusable) and reason in unusable.reason


def test_edits_are_two_pictures_and_an_instruction(folder: Path, tmp_path: Path) -> None:
    good = {"source": "b.png", "instruction": " make it night\n", "target": "a.png"}
    path = write_lines(
        folder / "edits.jsonl",
        [
            good,
            {**good, "instruction": " "},
            {**good, "target": None},
            {**good, "target": "x.png"},
        ],
    )
    sample, *unusable = [one for _, one in Edits(EditsConfig(records=str(path))).samples()]
    assert shown(sample) == [png("b"), png("a")]
    assert sample.record["instruction"] == "make it night"
    for one, reason in zip(unusable, ("no instruction", "no edit", "x.png cannot be read"), strict=True):
        assert reason in one.reason
    write_lines(path, [{**good, "source": f"{letter}.png"} for letter in "abcd"] * 5)
    found = run_prepare_documents(EditsConfig(records=str(path), test_share=0.5), tmp_path / "data")
    for stored in [*found["train"], *found["test"]]:
        assert list(stored.pictures) == ["0.png", "1.png"] and stored.pictures["1.png"] == picture(0)
