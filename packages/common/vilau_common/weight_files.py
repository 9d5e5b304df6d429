"""The weights of a checkpoint directory, tensor by tensor: what is there is known before any of it is read.

One file `model.safetensors`, shards with `model.safetensors.index.json`, or the same as `pytorch_model.bin`, which is
read as tensors alone (`weights_only=True`): a pickle may run code.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vilau_common.errors import UserError

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
HEADER_LENGTH = 8  # bytes that tell how long a safetensors header is

# The names that safetensors' header gives to dtypes.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class WeightFiles(Mapping[str, Entry]):
    """Names -> what the files' headers tell of each tensor; `tensor(name)` reads one.

    Raises UserError where there are no weights, or a file is missing, cut off, or no weights file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.main_file, files = _weight_files(directory)
        self._bins: dict[Path, dict[str, Tensor]] = {}
        self._open: dict[Path, Any] = {}
        self._entries: dict[str, Entry] = {}
        for file, names in files.items():
            entries = self._read_bin(file) if file.suffix == ".bin" else _read_header(file)
            for name in entries if names is None else names:
                if name not in entries:
                    raise UserError(f"{self.main_file} says that {file.name} holds {name}, but it does not")
                self._entries[name] = entries[name]

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def tensor(self, name: str) -> Tensor:
        """The tensor on the CPU, backed by the file where it can be: memory is taken once it is read."""
        file = self._entries[name].file
        if file in self._bins:
            return self._bins[file][name]
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        tensor: Tensor = self._open[file].get_tensor(name)
        return tensor

    def _read_bin(self, file: Path) -> dict[str, Entry]:
        try:
            # Only files in the zip format (PyTorch 1.6 and later) can be mapped into memory.
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except pickle.UnpicklingError:
            raise UserError(
                f"{file} is no file of tensors alone, and anything else may run code; save it as safetensors"
            ) from None
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{file} cannot be read as weights: {cause}") from None
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise UserError(f"{file} holds no dictionary from names to tensors")
        self._bins[file] = tensors
        return {name: Entry(file, tuple(value.shape), value.dtype) for name, value in tensors.items()}


def _weight_files(directory: Path) -> tuple[Path, dict[Path, list[str] | None]]:
    """The file that names the tensors (an index, or the weights themselves), and each file's names (None: all)."""
    for single in SINGLE_FILES:
        if (directory / single).is_file():
            return directory / single, {directory / single: None}
        index = directory / f"{single}.index.json"
        if index.is_file():
            files: dict[Path, list[str] | None] = {}
            for name, shard in read_json(index).get("weight_map", {}).items():
                file = directory / Path(shard).name  # an index names no files elsewhere
                names = files.setdefault(file, [])
                assert names is not None
                names.append(name)
            for file in files:
                if not file.is_file():
                    raise UserError(f"{index} names {file.name}, which is missing")
            return index, files
    raise UserError(
        f"no weights in {directory}: expected model.safetensors, or shards with model.safetensors.index.json "
        "(or the same as pytorch_model.bin)"
    )


def _read_header(file: Path) -> dict[str, Entry]:
    """What a safetensors file says that it holds; the file must be as long as that takes."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(HEADER_LENGTH)
        length = struct.unpack("<Q", start)[0] if len(start) == HEADER_LENGTH else size
        if HEADER_LENGTH + length > size:
            raise UserError(f"{file} is cut off: it ends within its header ({size} bytes); copy it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            entries = {
                name: Entry(file, tuple(value["shape"]), DTYPES[value["dtype"]])
                for name, value in header.items()
            }
            end = max((value["data_offsets"][1] for value in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise UserError(f"{file} is no safetensors file: its header cannot be read") from None
    begin = HEADER_LENGTH + length
    if size < begin + end:
        cut = min(name for name, value in header.items() if begin + value["data_offsets"][1] > size)
        raise UserError(
            f"{file} is cut off: it should have {begin + end} bytes, but has {size}, so that {cut} is not whole; "
            "copy it again"
        )
    return entries


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError where there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {file}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no JSON object")
    return values
