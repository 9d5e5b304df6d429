"""Decoding the fields of a stored sample; whatever is wrong with one is a `BadSample` that says what."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping
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

_NPY_1_0_PREAMBLE = 10  # magic, version and the header's length in two bytes
_CODES_AXES = 4


def image_field(fields: Mapping[str, bytes]) -> np.ndarray:
    """Decode the picture of a sample to uint8 `[H, W, 3]`, as a person sees it (`read_picture`). Perhaps read-only.

    Raises BadSample where there is none or it is damaged.
    """
    field = next((field for field in IMAGE_FIELDS if field in fields), None)
    if field is None:
        raise BadSample(f"no image: has none of the fields {', '.join(IMAGE_FIELDS)}")
    try:
        return read_picture(fields[field])
    except PictureError as error:
        raise BadSample(f"image field '{field}' cannot be decoded: {error}") from error


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
    """The sample's image codes: uint16 `[V, h, w, D]`, values in [0, codebook_size), V augmentation variants.

    Read-only memory. Raises BadSample where they are missing, damaged or out of range.
    """
    try:
        data = fields[CODES_FIELD]
    except KeyError:
        raise BadSample(f"no field '{CODES_FIELD}'") from None
    try:
        header_end = _NPY_1_0_PREAMBLE + int.from_bytes(data[8:_NPY_1_0_PREAMBLE], "little")
        shape, fortran_order, dtype = _npy_header(data[:header_end])
        if dtype != np.uint16 or len(shape) != _CODES_AXES or fortran_order:
            raise BadSample(f"field '{CODES_FIELD}' is {dtype} {list(shape)}, not uint16 [V, h, w, D]")
        codes = np.frombuffer(data, dtype, offset=header_end).reshape(shape)
    except ValueError as error:
        raise BadSample(f"field '{CODES_FIELD}' cannot be read: {error}") from error
    if not codes.size:
        raise BadSample(f"field '{CODES_FIELD}' is empty")
    largest = int(codes.max())
    if largest >= codebook_size:
        raise BadSample(f"code {largest} is out of range: the codebook has {codebook_size} entries")
    return codes


@functools.lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse a .npy header; samples share theirs, and parsing costs more than all the rest of reading one."""
    stream = io.BytesIO(header)
    if npy_format.read_magic(stream) != (1, 0):
        raise ValueError("only version 1.0 of the .npy format is read")
    return npy_format.read_array_header_1_0(stream)
