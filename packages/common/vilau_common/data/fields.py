"""Decoding the fields of a stored sample; whatever is wrong with one is a `BadSample` that says what."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from vilau_common.data.encoder import BadSample
from vilau_common.pictures import PictureError, read_picture

IMAGE_FIELDS = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff")
JSON_FIELD = "json"
TEXT_FIELD = "txt"
CAPTIONS = "captions"  # where the JSON of our own data sets has them
CODES_FIELD = "codes.npy"

# Of a record that describes several pictures, or none.
PICTURES = "pictures"  # how many there are, frames of videos included
VIDEOS = "videos"  # the number of frames of each video: they are the last pictures
CONVERSATION = "conversation"  # turns (`data.conversation`)
INTERLEAVED = "interleaved"  # a text with <image> where its pictures stand
INSTRUCTION = "instruction"  # how the first picture becomes the second

_NPY_1_0_PREAMBLE = 10  # magic, version and the header's length in two bytes
_CODES_AXES = (4, 5)


def image_field(fields: Mapping[str, bytes]) -> np.ndarray:
    """Decode the picture of a sample to uint8 `[H, W, 3]`, as a person sees it (`read_picture`). Perhaps read-only.

    Raises BadSample where there is none or it is damaged.
    """
    field = next((field for field in IMAGE_FIELDS if field in fields), None)
    if field is None:
        raise BadSample(f"no image: has none of the fields {', '.join(IMAGE_FIELDS)}")
    return _decoded(fields, field)


def picture_fields(pictures: Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
    """(ending, content) of a sample's pictures -> its fields: `jpg` of a single one, `0.jpg`, `1.png`, … of several."""
    if len(pictures) == 1:
        return dict(pictures)
    return {f"{number}.{ending}": content for number, (ending, content) in enumerate(pictures)}


def images_field(fields: Mapping[str, bytes], record: Mapping[str, Any]) -> list[np.ndarray]:
    """Decode every picture of a sample, uint8 `[H, W, 3]` each, in order.

    Raises BadSample where there is none or one is damaged, unless the record says that there are so many.
    """
    numbered = {}
    for field in fields:
        number, _, ending = field.partition(".")
        if number.isdecimal() and ending in IMAGE_FIELDS:
            numbered[int(number)] = field
    if record.get(PICTURES) != 0 and not numbered:
        images = [image_field(fields)]
    else:
        images = [_decoded(fields, numbered[number]) for number in sorted(numbered)]
    if record.get(PICTURES, len(images)) != len(images):
        raise BadSample(f"{len(images)} pictures, but its record tells of {record[PICTURES]}")
    return images


def video_lengths(record: Mapping[str, Any]) -> list[int]:
    """The number of frames of each of the sample's videos. Raises BadSample for anything else than numbers."""
    lengths = record.get(VIDEOS, [])
    if not isinstance(lengths, list) or not all(type(length) is int and length > 0 for length in lengths):
        raise BadSample(f"{VIDEOS}: expected a list of numbers of frames")
    return lengths


def json_field(fields: Mapping[str, bytes], field: str = JSON_FIELD) -> dict[str, Any]:
    """Parse the sample's JSON object. Raises BadSample where it is missing or not an object."""
    try:
        value = json.loads(fields[field])
    except KeyError:
        raise BadSample(f"no field '{field}'") from None
    except ValueError as error:
        raise BadSample(f"field '{field}' is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadSample(f"field '{field}' is not a JSON object")
    return value


def text_list(record: Mapping[str, Any], name: str) -> list[str]:
    """The non-empty list of texts `record[name]`, such as a sample's captions. Raises BadSample otherwise."""
    texts = record.get(name)
    if not texts or not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise BadSample(f"no {name}: expected a list of texts")
    return texts


def text_field(record: Mapping[str, Any], name: str) -> str:
    """The text `record[name]`. Raises BadSample where there is none, or white space alone."""
    text = record.get(name)
    if not isinstance(text, str) or not text.strip():
        raise BadSample(f"no {name}: expected a text")
    return text


def captions_field(fields: Mapping[str, bytes], key: str = CAPTIONS) -> list[str]:
    """The sample's captions, at least one.

    key: where its JSON has them, a text or a list of texts; or `txt`, its text file, which is one caption (the last two
    are img2dataset's). Raises BadSample where there are none.
    """
    if key != TEXT_FIELD:
        record = json_field(fields)
        said = record.get(key)
        return text_list({key: [said]} if isinstance(said, str) else record, key)
    try:
        text = fields[TEXT_FIELD].decode("utf-8").strip()
    except KeyError:
        raise BadSample(f"no field '{TEXT_FIELD}'") from None
    except UnicodeDecodeError as error:
        raise BadSample(f"field '{TEXT_FIELD}' is not UTF-8: {error}") from error
    return text_list({TEXT_FIELD: [text]}, TEXT_FIELD)


def codes_field(fields: Mapping[str, bytes], codebook_size: int) -> np.ndarray:
    """The codes of a sample's one picture: uint16 `[V, h, w, D]`, values in [0, codebook_size), V variants.

    Read-only memory. Raises BadSample where they are missing, damaged, out of range, or those of several pictures.
    """
    codes = _codes(fields, codebook_size)
    if len(codes) != 1:
        raise BadSample(f"codes of {len(codes)} pictures, where one is expected")
    return codes[0]


def sample_codes(fields: Mapping[str, bytes], record: Mapping[str, Any], codebook_size: int) -> np.ndarray:
    """The codes of all of a sample's N pictures: uint16 `[N, V, h, w, D]`; without pictures an empty array.

    Raises BadSample as `codes_field`, and where the record tells of another number of pictures.
    """
    if record.get(PICTURES) == 0 and CODES_FIELD not in fields:
        return np.zeros((0, 1, 0, 0, 0), np.uint16)
    codes = _codes(fields, codebook_size)
    if record.get(PICTURES, len(codes)) != len(codes):
        raise BadSample(f"codes of {len(codes)} pictures, but its record tells of {record[PICTURES]}")
    return codes


def _codes(fields: Mapping[str, bytes], codebook_size: int) -> np.ndarray:
    """uint16 `[N, V, h, w, D]`; stored without the first axis where N is 1."""
    try:
        data = fields[CODES_FIELD]
    except KeyError:
        raise BadSample(f"no field '{CODES_FIELD}'") from None
    try:
        header_end = _NPY_1_0_PREAMBLE + int.from_bytes(data[8:_NPY_1_0_PREAMBLE], "little")
        shape, fortran_order, dtype = _npy_header(data[:header_end])
        if dtype != np.uint16 or len(shape) not in _CODES_AXES or fortran_order:
            raise BadSample(
                f"field '{CODES_FIELD}' is {dtype} {list(shape)}, not uint16 [V, h, w, D] or [N, V, h, w, D]"
            )
        codes = np.frombuffer(data, dtype, offset=header_end).reshape(shape)
    except ValueError as error:
        raise BadSample(f"field '{CODES_FIELD}' cannot be read: {error}") from error
    if not codes.size:
        raise BadSample(f"field '{CODES_FIELD}' is empty")
    largest = int(codes.max())
    if largest >= codebook_size:
        raise BadSample(f"code {largest} is out of range: the codebook has {codebook_size} entries")
    return codes if codes.ndim == max(_CODES_AXES) else codes[np.newaxis]


def _decoded(fields: Mapping[str, bytes], field: str) -> np.ndarray:
    try:
        return read_picture(fields[field])
    except PictureError as error:
        raise BadSample(f"image field '{field}' cannot be decoded: {error}") from error


@functools.lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse a .npy header; samples share theirs, and parsing costs more than all the rest of reading one."""
    stream = io.BytesIO(header)
    if npy_format.read_magic(stream) != (1, 0):
        raise ValueError("only version 1.0 of the .npy format is read")
    return npy_format.read_array_header_1_0(stream)
