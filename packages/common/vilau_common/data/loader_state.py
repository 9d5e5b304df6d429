"""The state of Megatron-Energon's loader as plain values, and back.

Energon saves nested dataclasses, numpy arrays and dict subclasses. A checkpoint must not need pickle to run
code, so they become dicts, lists, tuples, numbers, strings, bytes and tensors, which
`torch.load(weights_only=True)` accepts. The short list below is everything that is ever rebuilt.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from megatron.energon.flavors.base_dataset import FlexState
from megatron.energon.flavors.webdataset.sample_loader import SliceState
from megatron.energon.rng import SystemRngState
from megatron.energon.savable_loader import (
    SavableDataLoaderState,
    SavableDatasetCheckpoint,
    SavableDatasetState,
)

_RECORDS: dict[str, Any] = {
    record.__name__: record
    for record in (
        SavableDataLoaderState,
        SavableDatasetCheckpoint,
        SavableDatasetState,
        SystemRngState,
        SliceState,
    )
}
_TYPE, _ARRAY = "__type__", "__array__"


def to_plain(value: Any) -> Any:
    """Plain values for a loader state or a part of one."""
    if dataclasses.is_dataclass(value) and type(value).__name__ in _RECORDS:
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {_TYPE: type(value).__name__, **fields}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {_ARRAY: value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, (list, tuple)):
        return type(value)(to_plain(item) for item in value)
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.Tensor)):
        return value
    raise TypeError(f"cannot store a {type(value).__name__} of the loader's state")


def from_plain(value: Any) -> Any:
    """The inverse of `to_plain`; every container is new."""
    if isinstance(value, dict):
        if _ARRAY in value:
            return np.frombuffer(value[_ARRAY], value["dtype"]).reshape(value["shape"]).copy()
        items = {key: from_plain(item) for key, item in value.items() if key != _TYPE}
        return _RECORDS[value[_TYPE]](**items) if _TYPE in value else FlexState(items)
    if isinstance(value, (list, tuple)):
        return type(value)(from_plain(item) for item in value)
    return value
