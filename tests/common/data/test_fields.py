from __future__ import annotations

import io
import json

import numpy as np
import pytest

from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import (
    captions_field,
    codes_field,
    image_field,
    images_field,
    json_field,
    picture_fields,
    sample_codes,
    text_field,
    text_list,
    video_lengths,
)
from vilau_common.data.prepare import encode_png

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_png_is_lossless_and_rgb() -> None:
    image = image_field({"json": b"", "png": encode_png(PICTURE)})
    assert image.dtype == np.uint8
    assert np.array_equal(image, PICTURE)


@pytest.mark.parametrize(
    "content", [b"", b"no picture", encode_png(PICTURE)[:-40]], ids=["empty", "garbage", "truncated"]
)
def test_a_damaged_picture_is_a_bad_sample(content: bytes) -> None:
    with pytest.raises(BadSample, match="'png' cannot be decoded"):
        image_field({"png": content})


def test_no_picture_is_a_bad_sample() -> None:
    with pytest.raises(BadSample, match="no image"):
        image_field({"json": b"{}"})


@pytest.mark.parametrize("fields", [{}, {"json": b"{"}, {"json": b"[1]"}, {"json": b"\xff"}])
def test_json_that_is_no_object_is_a_bad_sample(fields: dict[str, bytes]) -> None:
    with pytest.raises(BadSample, match="json"):
        json_field(fields)


def test_json_and_texts() -> None:
    record = json_field({"json": json.dumps({"captions": ["ein grüner Kreis"]}).encode()})
    assert text_list(record, "captions") == ["ein grüner Kreis"]


@pytest.mark.parametrize("captions", [None, [], "text", [""], [1]])
def test_missing_captions_are_a_bad_sample(captions: object) -> None:
    with pytest.raises(BadSample, match="no captions"):
        text_list({"captions": captions}, "captions")


def test_captions_are_where_the_key_says() -> None:
    record = json.dumps({"captions": ["a", "b"], "alt": "c", "many": ["d"], "width": 3, "none": ""}).encode()
    fields = {"json": record, "txt": b" e\nf \n"}
    said = {key: captions_field(fields, key) for key in ("captions", "alt", "many", "txt")}
    assert said == {"captions": ["a", "b"], "alt": ["c"], "many": ["d"], "txt": ["e\nf"]}
    assert captions_field(fields) == ["a", "b"]
    for key in ("width", "none", "missing"):
        with pytest.raises(BadSample, match=f"no {key}: expected"):
            captions_field(fields, key)
    for text, reason in ((None, "no field 'txt'"), (b"\xff", "is not UTF-8"), (b" \n", "no txt")):
        with pytest.raises(BadSample, match=reason):
            captions_field({} if text is None else {"txt": text}, "txt")


def test_codes() -> None:
    codes = RNG.integers(0, 16, (2, 4, 3, 5)).astype(np.uint16)
    assert np.array_equal(codes_field({"codes.npy": npy(codes)}, 16), codes)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no field"),
        (b"garbage", "cannot be read"),
        (npy(np.zeros((1, 2, 2, 2), np.uint16))[:-1], "cannot be read"),
        (npy(np.zeros((1, 2, 2, 2), np.int64)), "not uint16"),
        (npy(np.zeros((2, 2, 2), np.uint16)), "not uint16"),
        (npy(np.zeros((0, 2, 2, 2), np.uint16)), "empty"),
        (npy(np.full((1, 2, 2, 2), 16, np.uint16)), "code 16 is out of range"),
    ],
)
def test_wrong_codes_are_a_bad_sample(content: bytes | None, reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        codes_field({} if content is None else {"codes.npy": content}, 16)


def test_codes_of_several_pictures_and_of_none() -> None:
    codes = RNG.integers(0, 16, (3, 2, 4, 3, 5)).astype(np.uint16)
    assert np.array_equal(sample_codes({"codes.npy": npy(codes)}, {"pictures": 3}, 16), codes)
    assert np.array_equal(sample_codes({"codes.npy": npy(codes[0])}, {}, 16), codes[:1])
    assert np.array_equal(sample_codes({"codes.npy": npy(codes[0])}, {"pictures": 1}, 16), codes[:1])
    assert len(sample_codes({}, {"pictures": 0}, 16)) == 0
    for fields, record, reason in (
        ({}, {}, "no field 'codes.npy'"),
        ({}, {"pictures": 2}, "no field 'codes.npy'"),
        ({"codes.npy": npy(codes)}, {"pictures": 2}, "codes of 3 pictures, but its record tells of 2"),
        ({"codes.npy": npy(codes)}, {"pictures": 0}, "codes of 3 pictures, but its record tells of 0"),
        ({"codes.npy": npy(codes + 11)}, {"pictures": 3}, "is out of range"),
    ):
        with pytest.raises(BadSample, match=reason):
            sample_codes(fields, record, 16)
    with pytest.raises(BadSample, match="codes of 3 pictures, where one is expected"):
        codes_field({"codes.npy": npy(codes)}, 16)


@pytest.mark.parametrize("count", [0, 1, 2, 12])
def test_pictures_come_back_in_their_order(count: int) -> None:
    pictures = [("png", encode_png(np.full((2, 2, 3), number, np.uint8))) for number in range(count)]
    fields = {**dict(reversed(picture_fields(pictures).items())), "json": b"{}"}
    shown = images_field(fields, {"pictures": count})
    assert [int(image.max()) for image in shown] == list(range(count))
    if count == 1:
        assert fields.keys() == {"png", "json"}
        assert np.array_equal(images_field(fields, {})[0], shown[0])


def test_pictures_that_are_missing_or_damaged_are_told() -> None:
    fields = picture_fields([("png", encode_png(PICTURE))] * 3)
    with pytest.raises(BadSample, match="3 pictures, but its record tells of 4"):
        images_field(fields, {"pictures": 4})
    with pytest.raises(BadSample, match="3 pictures, but its record tells of 0"):
        images_field(fields, {"pictures": 0})
    with pytest.raises(BadSample, match="'1.png' cannot be decoded"):
        images_field({**fields, "1.png": b"no picture"}, {"pictures": 3})
    with pytest.raises(BadSample, match="no image"):
        images_field({"json": b"{}"}, {})


def test_videos_are_numbers_of_frames() -> None:
    assert video_lengths({}) == [] and video_lengths({"videos": [8, 1]}) == [8, 1]
    for videos in (8, ["8"], [0], [True], [8.0]):
        with pytest.raises(BadSample, match="videos: expected a list of numbers of frames"):
            video_lengths({"videos": videos})


@pytest.mark.parametrize("value", [None, 3, "", " \n", ["a"]])
def test_a_missing_text_is_a_bad_sample(value: object) -> None:
    assert text_field({"instruction": "a"}, "instruction") == "a"
    with pytest.raises(BadSample, match="no instruction: expected a text"):
        text_field({"instruction": value}, "instruction")
