"""Variants of the recorded official checkpoints: other sizes, files and faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

CASES = Path(__file__).parents[1] / "assets" / "parity"
SHARED, SEPARATE = CASES / "shared_codebook", CASES / "separate_codebooks"
PARTS = ("llm", "vision_tower", "mm_projector")


def copy_of(case: Path, target: Path) -> Path:
    """The checkpoint without its recorded outputs."""
    return Path(shutil.copytree(case, target, ignore=shutil.ignore_patterns("golden.*")))


def change_json(file: Path, **changes: Any) -> None:
    """Set keys, dotted for nested ones; None removes."""
    values = json.loads(file.read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        inner = values
        for name in path:
            inner = inner[name]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    file.write_text(json.dumps(values))


def change_tensors(part: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = load_file(part / "model.safetensors")
    save_file(change(tensors), part / "model.safetensors", metadata={"format": "pt"})


def tensors_of(directory: Path) -> dict[str, Tensor]:
    """All tensors of an official checkpoint in safetensors, by part/name."""
    found: dict[str, Tensor] = {}
    for part in PARTS:
        for file in (directory / part).glob("*.safetensors"):
            found |= {f"{part}/{name}": tensor for name, tensor in load_file(file).items()}
    return found


def as_bytes(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(torch.uint8).numpy().tobytes())
        if tensor.ndim
        else (tensor.dtype, (), tensor.reshape(1).view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def in_shards(directory: Path) -> Path:
    """The same checkpoint in shards of 200 KB."""
    for part in PARTS:
        tensors = load_file(directory / part / "model.safetensors")
        (directory / part / "model.safetensors").unlink()
        save_torch_state_dict(tensors, directory / part, max_shard_size=200_000)
    return directory


def in_bins(directory: Path) -> Path:
    """The same checkpoint as PyTorch's own files, a codebook shared by all depths under each one's name."""
    for part in PARTS:
        tensors = load_file(directory / part / "model.safetensors")
        (directory / part / "model.safetensors").unlink()
        for name in list(tensors):
            if ".codebooks.0." in name and name.replace(".0.", ".1.") not in tensors:
                for depth in range(1, 4):
                    tensors[name.replace(".codebooks.0.", f".codebooks.{depth}.")] = tensors[name]
        torch.save(tensors, directory / part / "pytorch_model.bin")
    return directory


def in_bfloat16(directory: Path) -> Path:
    """As the released weights are, but for the moving averages."""
    for part in PARTS:
        change_tensors(
            directory / part,
            lambda tensors: {
                name: tensor if name.endswith("_ema") else tensor.bfloat16()
                for name, tensor in tensors.items()
            },
        )
    return directory
