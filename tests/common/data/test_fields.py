from __future__ import annotations

import io
import json

import numpy as np
import pytest

from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import captions_field, codes_field, image_field, json_field, text_list
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
