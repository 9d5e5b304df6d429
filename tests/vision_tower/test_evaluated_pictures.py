"""Pictures from a folder, from shards, from a prepared data set: the same batches."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vilau_common.data.split import load_split
from vilau_common.errors import UserError
from vilau_vision_tower.evaluation.pictures import Decoding, EvaluatedPicture, open_pictures

SIDE = 16


def picture_file(seed: int, width: int = SIDE, height: int = SIDE, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for key, fields in samples.items():
            for field, content in fields.items():
                member = tarfile.TarInfo(f"{key}.{field}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def decoding(path: Path, **changes: Any) -> Decoding:
    settings = {"limit": None, "threads": 2, "max_bad_share": 0.0, **changes}
    return Decoding(open_pictures(path), SIDE, **settings)


def read(path: Path, **changes: Any) -> list[EvaluatedPicture]:
    return list(decoding(path, **changes))


def test_a_folder_with_classes_and_captions(tmp_path: Path) -> None:
    for place in ("dog/1.png", "cat/2.JPEG", "cat/deep/3.png", "4.png"):
        file = tmp_path / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture_file(1, form="JPEG" if place.endswith("JPEG") else "PNG"))
    (tmp_path / "dog/1.txt").write_text("a dog\nan animal\n")
    (tmp_path / "notes.md").write_text("no picture")
    assert open_pictures(tmp_path).folders == ["cat", "dog"]
    found = {picture.name: picture for picture in read(tmp_path)}
    labels = {name: picture.label for name, picture in found.items()}
    assert labels == {"4.png": None, "cat/2.JPEG": "cat", "cat/deep/3.png": "cat", "dog/1.png": "dog"}
    assert found["dog/1.png"].captions == ["a dog", "an animal"]
    assert found["4.png"].captions == []
    assert np.array_equal(found["dog/1.png"].image, np.asarray(Image.open(tmp_path / "dog/1.png")))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metadata.jsonl", '{"file_name": "1.png", "label": 3}\n'),
        ("metadata.csv", "file_name,label\n1.png,3\n"),
    ],
)
def test_a_caption_file_may_hold_labels_alone(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / "1.png").write_bytes(picture_file(1))
    (tmp_path / file).write_text(content)
    (picture,) = read(tmp_path)
    assert picture.captions == []


def test_a_scene_in_other_peoples_json_is_theirs(tmp_path: Path) -> None:
    record = {"caption": "at the sea", "scene": "beach"}
    write_tar(tmp_path / "0.tar", {"a": {"png": picture_file(0), "json": json.dumps(record).encode()}})
    (picture,) = read(tmp_path)
    assert (picture.captions, picture.scene) == (["at the sea"], None)


def test_shards_with_labels_and_captions_of_every_kind(tmp_path: Path) -> None:
    sample = {"png": picture_file(0)}
    write_tar(tmp_path / "1.tar", {"a": {**sample, "cls": b"7", "txt": b"a thing\n"}})
    listed = {"captions": ["one", "two"]}
    write_tar(
        tmp_path / "0.tar",
        {
            "b": {**sample, "json": json.dumps({"caption": "single"}).encode()},
            "c": {**sample, "json": json.dumps(listed).encode(), "txt": b"not this"},
            "d": sample,
        },
    )
    assert open_pictures(tmp_path).total == 4
    found = {picture.name: picture for picture in read(tmp_path)}
    assert list(found) == ["0.tar:b", "0.tar:c", "0.tar:d", "1.tar:a"]
    assert {name: picture.captions for name, picture in found.items()} == {
        "0.tar:b": ["single"],
        "0.tar:c": ["one", "two"],
        "0.tar:d": [],
        "1.tar:a": ["a thing"],
    }
    assert found["1.tar:a"].label == 7
    assert found["0.tar:b"].label is None


def test_a_prepared_data_set_stands_for_its_test_split(scenes: Path) -> None:
    split = load_split(scenes / "test")
    for path in (scenes, scenes / "test"):
        source = open_pictures(path)
        found = list(Decoding(source, 32, limit=None, threads=1, max_bad_share=0))
        assert source.world is not None
        assert np.array_equal(np.stack([picture.image for picture in found]), split.images)
        assert [picture.captions for picture in found] == split.captions
        assert [picture.scene for picture in found] == split.scenes
        assert "red circle" in source.folders and len(source.folders) == 24
        alone = [len(scene.objects) == 1 for scene in split.scenes if scene is not None]
        assert [picture.label is not None for picture in found] == alone and 0 < sum(alone) < len(alone)
        labelled = [picture for picture in found if picture.label is not None]
        assert all(picture.label in picture.captions[0] for picture in labelled), "a large red circle at …"


def test_other_sizes_become_the_centre_square(tmp_path: Path) -> None:
    wide = np.zeros((SIDE, 3 * SIDE, 3), np.uint8)
    wide[:, SIDE : 2 * SIDE] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).resize((4 * SIDE, 12 * SIDE)).save(tmp_path / "tall.png")
    tall, square = read(tmp_path)
    assert (square.image == 200).all()
    assert tall.image.shape == (SIDE, SIDE, 3)
    assert (tall.image[2:-2] == 200).all()


def test_order_and_limit_do_not_depend_on_threads(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02d}.png").write_bytes(picture_file(number))
    names = [picture.name for picture in read(tmp_path, threads=3)]
    assert names == [f"{number:02d}.png" for number in range(40)]
    some = decoding(tmp_path, limit=7)
    assert some.total == 7
    assert [len(batch) for batch in some.batches(3)] == [3, 3, 1]


def test_damaged_pictures_are_skipped_up_to_a_share(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(picture_file(number))
    (tmp_path / "bad.png").write_bytes(picture_file(0)[:60])
    some = decoding(tmp_path, max_bad_share=0.1)
    assert len(list(some)) == 9
    assert len(some.skipped) == 1
    assert some.skipped[0].startswith("bad.png: image field 'png' cannot be decoded")
    with pytest.raises(UserError, match=r"1 of 10 pictures cannot be used, .*; the first: bad.png: "):
        read(tmp_path, max_bad_share=0.05)


def test_of_shards_no_more_are_counted_than_will_be_read(tmp_path: Path) -> None:
    samples = {f"{number}": {"png": picture_file(number)} for number in range(4)}
    write_tar(tmp_path / "0.tar", samples)
    (tmp_path / "1.tar").write_bytes(b"no tar")
    assert open_pictures(tmp_path, 3).total == 4
    assert len(list(Decoding(open_pictures(tmp_path, 4), SIDE, limit=4, threads=1, max_bad_share=0))) == 4
    with pytest.raises(UserError, match=r"shard .*1\.tar cannot be read"):
        open_pictures(tmp_path, 5)


def test_a_label_that_is_no_number_makes_a_bad_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a": {"png": picture_file(0), "cls": b"dog"}})
    with pytest.raises(UserError, match="field 'cls' is b'dog', not a number"):
        read(tmp_path)


def test_nothing_to_evaluate_on_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such directory"):
        open_pictures(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"neither pictures \(.*\) nor \*\.tar shards"):
        open_pictures(tmp_path)
    (tmp_path / "half.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"shard .*half\.tar cannot be read"):
        open_pictures(tmp_path)
