"""Folders of pictures: each way to give captions, the split, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from source_toys import picture, run_prepare, write_pictures

from vilau_common.data.shards import dataset_info
from vilau_common.data.sources.image_folder import ImageFolder, ImageFolderConfig
from vilau_common.errors import UserError

NAMES = ["one.PNG", "deep/two.png"]
SAID = {"one.PNG": ["first", "uno"], "deep/two.png": ["second, with a comma"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one of them in a subfolder, without captions."""
    return write_pictures(tmp_path / "photos", NAMES)


def read(folder: Path, **settings: object) -> dict[str, list[str]]:
    """The captions by the pictures' names."""
    pictures = ImageFolder(ImageFolderConfig(folder=str(folder), **settings)).samples()
    return {picture.key: picture.captions for _, picture in pictures}


def lines(path: Path, *records: object) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_captions_beside_the_pictures(folder: Path) -> None:
    (folder / "one.txt").write_text("first\nuno\n")
    (folder / "deep" / "two.txt").write_text("\nsecond, with a comma")
    assert read(folder) == SAID


@pytest.mark.parametrize("name", ["captions.csv", "metadata.csv"])
def test_captions_in_a_table(folder: Path, name: str) -> None:
    table = 'file_name,caption\none.PNG,first\ndeep/two.png,"second, with a comma"\none.PNG,uno\n'
    (folder / name).write_text(table)
    assert read(folder) == SAID


def test_captions_in_lines(folder: Path) -> None:
    two = {"file": "deep/two.png", "caption": " second, with a comma"}
    lines(folder / "captions.jsonl", {"file": "one.PNG", "captions": ["first", "uno"]}, two)
    assert read(folder) == SAID


def test_captions_as_hugging_face_has_them(folder: Path) -> None:
    one = {"file_name": "one.PNG", "text": "first", "alt": "x"}
    two = {"file_name": "deep/two.png", "text": "second, with a comma", "alt": ["y", "z"]}
    lines(folder / "metadata.jsonl", one, two, {**one, "text": "uno"})
    assert read(folder) == SAID
    assert read(folder, caption_key="alt") == {"one.PNG": ["x", "x"], "deep/two.png": ["y", "z"]}


def test_class_folders(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pets", ["siamese_cat/1.png", "siamese_cat/young/2.png", "dog/3.png"])
    templates = ["a photo of a {}", "{}"]
    cat, dog = ["a photo of a siamese cat", "siamese cat"], ["a photo of a dog", "dog"]
    expected = {"dog/3.png": dog, "siamese_cat/1.png": cat, "siamese_cat/young/2.png": cat}
    assert read(folder, class_templates=templates) == expected
    with pytest.raises(UserError, match=r"no captions .* for class folders set source.class_templates"):
        read(folder)
    write_pictures(folder, ["loose.png"])
    with pytest.raises(UserError, match=r"loose.png lies in no class folder"):
        read(folder, class_templates=templates)
    with pytest.raises(UserError, match=r"'a photo' has no {}"):
        read(folder, class_templates=["a photo"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", "name,text\none.PNG,first\n", "line 2: expected"),
        ("captions.jsonl", '{"file": "one.PNG"}\n', "line 1: expected"),
        ("captions.jsonl", '{"file": "one.PNG", "captions": ["a"]}\n[]\n', "line 2: expected"),
        ("captions.jsonl", '{"file": "one.PNG", "caption": 3}\n', "line 1: expected"),
        ("captions.jsonl", '{"file": "one.PNG"\n', "line 1 is not JSON"),
        ("captions.jsonl", '{"file": "other.png", "text": "a"}\n', "no captions for the 2 pictures"),
    ],
)
def test_wrong_captions_are_named(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read(folder)


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "one.txt"])
def test_captions_in_another_encoding_are_named(folder: Path, name: str) -> None:
    said = {"captions.csv": "file,text\none.PNG,caf\xe9\n", "one.txt": "caf\xe9"}
    line = '{"file": "one.PNG", "text": "caf\xe9"}'
    (folder / name).write_text(said.get(name, line), encoding="latin-1")
    with pytest.raises(UserError, match=rf"{name}.*'utf-8' codec can't decode byte 0xe9"):
        read(folder)


def test_a_damaged_table_is_named(folder: Path) -> None:
    (folder / "captions.csv").write_text('file,text\none.PNG,"' + "a" * 200_000)
    with pytest.raises(UserError, match=r"captions.csv, line \d+ cannot be read: field larger than"):
        read(folder)


def test_missing_folders_and_pictures_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="source.folder is not set"):
        ImageFolder(ImageFolderConfig())
    with pytest.raises(UserError, match="source.folder: there is no folder nowhere"):
        read(Path("nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures .* in .*empty"):
        read(tmp_path / "empty")
    (folder / "one.txt").write_text("first")
    with pytest.raises(UserError, match="source.test_folder: there is no folder nowhere"):
        read(folder, test_folder="nowhere")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Forty captioned pictures."""
    folder = write_pictures(tmp_path / "many", [f"{number:02d}.png" for number in range(40)])
    for number in range(40):
        (folder / f"{number:02d}.txt").write_text(f"picture {number}")
    return folder


def test_a_hash_of_the_names_splits(many: Path, tmp_path: Path) -> None:
    config = ImageFolderConfig(folder=str(many), test_share=0.25)
    found = run_prepare(config, tmp_path / "data")
    assert found.keys() == {"train", "test"}
    keys = {split: {record["key"] for record in records} for split, records in found.items()}
    assert not keys["train"] & keys["test"] and len(keys["train"] | keys["test"]) == 40
    assert 4 <= len(keys["test"]) <= 16
    for record in [*found["train"], *found["test"]]:
        number = int(record["key"][:2])
        assert record["captions"] == [f"picture {number}"]
        assert record["image"] == ("png", picture(number))
    # Another picture moves none of them.
    write_pictures(many, ["zz.png"])
    (many / "zz.txt").write_text("another")
    again = run_prepare(config, tmp_path / "data")
    assert {split: {r["key"] for r in records} - {"zz.png"} for split, records in again.items()} == keys
    assert (tmp_path / "data" / "tokenizer" / "tokenizer.json").is_file()


def test_a_folder_of_test_pictures(many: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "one.txt").write_text("first")
    (folder / "deep" / "two.txt").write_text("second")
    config = ImageFolderConfig(folder=str(many), test_folder=str(folder))
    found = run_prepare(config, tmp_path / "data", vocabulary_size=None)
    assert len(found["train"]) == 40
    assert [record["captions"] for record in found["test"]] == [["second"], ["first"]]
    assert not (tmp_path / "data" / "tokenizer").exists()


def test_only_what_changed_is_prepared_again(many: Path, tmp_path: Path) -> None:
    config = ImageFolderConfig(folder=str(many), test_share=0.25)
    run_prepare(config, tmp_path / "data", vocabulary_size=None)
    file = tmp_path / "data" / "train" / "dataset.json"
    before = file.stat().st_mtime_ns
    run_prepare(config, tmp_path / "data", vocabulary_size=None)
    assert file.stat().st_mtime_ns == before
    (many / "00.txt").write_text("changed")
    found = run_prepare(config, tmp_path / "data", vocabulary_size=None)
    assert ["changed"] in [record["captions"] for records in found.values() for record in records]


def test_a_few_unusable_pictures_are_left_out_and_told(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ImageFolderConfig(folder=str(many), test_share=0.25, max_bad_share=0.05)
    found = run_prepare(config, tmp_path / "data")
    capsys.readouterr()
    damaged = found["test"][0]["key"]
    (many / damaged).write_bytes(b"\x89PNG no picture")
    bare = next(record["key"] for record in found["train"])
    (many / bare).with_suffix(".txt").unlink()
    again = run_prepare(config, tmp_path / "data")
    assert sum(map(len, again.values())) == 38
    assert "2 of 40 pictures are left out" in capsys.readouterr().out
    strict = ImageFolderConfig(folder=str(many), test_share=0.26, max_bad_share=0.03)
    before = dataset_info(tmp_path / "data" / "train").fingerprint
    with pytest.raises(UserError, match=r"2 of 40 pictures of image_folder cannot be used.*no caption"):
        run_prepare(strict, tmp_path / "data")
    assert dataset_info(tmp_path / "data" / "train").fingerprint == before


def test_a_split_without_pictures_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "one.txt").write_text("first")
    (folder / "deep" / "two.txt").write_text("second")
    with pytest.raises(UserError, match="none of the 2 pictures of image_folder falls to the test split"):
        run_prepare(ImageFolderConfig(folder=str(folder), test_share=1e-6), tmp_path / "data")
    with pytest.raises(UserError, match="source.test_share is 1.0"):
        ImageFolderConfig(test_share=1.0)
