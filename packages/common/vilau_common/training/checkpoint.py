"""Checkpoints: written whole, checked before they are trusted, read without running anything they hold.

All tensors are whole, however a training divides them: any number of processes can read a checkpoint.

checkpoints/step_NNNNNN/  weights.safetensors  ema.safetensors  optimizer.pt  trainer.json
                          process_K.pt (one for each process: random states, data position)
                          manifest.json (size and CRC-32 of every other file)
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vilau_common import atomic, distributed
from vilau_common.errors import UserError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
AVERAGE = "ema.safetensors"
OPTIMIZERS = "optimizer.pt"
TRAINER = "trainer.json"
READ_SIZE = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """The contents of one checkpoint, as one process needs them; tensors on the CPU."""

    trainer: dict[str, Any]  # step, counters and the like, JSON
    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None  # the averaged weights
    optimizers: dict[str, Any]
    # This process's own: random state, data position; None when as many processes did not write it.
    process: dict[str, Any] | None


def path_of(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return directory / f"step_{step:06d}"


def write(directory: Path, step: int, checkpoint: Checkpoint, keep: int) -> Path:
    """Write the checkpoint of `step`, then remove all but the newest `keep`; called on every process.

    Only rank 0's tensors are written; `process` is everyone's own.
    UserError: the disk would not take it (the older checkpoints are still there).
    """
    path = path_of(directory, step)
    try:
        # Rank 0 names the place: every process sees the same file system, but only one makes the directory.
        temporary = Path(
            distributed.from_main(str(atomic.begin_directory(path)) if distributed.is_main() else "")
        )
        _save_checked(checkpoint.process, temporary / f"process_{distributed.rank()}.pt")
        distributed.barrier()
        if distributed.is_main():
            save_file(_separate(checkpoint.weights), temporary / WEIGHTS)
            if checkpoint.average is not None:
                save_file(_separate(checkpoint.average), temporary / AVERAGE)
            torch.save(checkpoint.optimizers, temporary / OPTIMIZERS)
            (temporary / TRAINER).write_text(
                json.dumps(checkpoint.trainer, indent=1) + "\n", encoding="utf-8"
            )
            manifest = {file.name: _fingerprint(file) for file in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            atomic.commit_directory(path)
            _prune(directory, step, keep)
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be written: {error.strerror or error}") from error
    distributed.barrier()
    return path


def newest_good(directory: Path) -> Path | None:
    """The newest checkpoint whose files are all as they were written, or None where there is no checkpoint.

    A damaged one is passed over with a warning. UserError: there are checkpoints, but not one is good.
    """
    found = _all(directory)
    for path in reversed(found):
        damage = damage_of(path)
        if damage is None:
            return path
        log.warning("checkpoint %s is damaged (%s); trying the one before it", path, damage)
    if found:
        raise UserError(f"no checkpoint in {directory} can be read: delete the run directory to begin anew")
    return None


def damage_of(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint, in a few words; None when they are as written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, fingerprint in manifest.items():
            if _fingerprint(path / name) != fingerprint:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"{MANIFEST}: {error}"
    return None


def read(path: Path, check: Callable[[Path, Mapping[str, Any]], None], mapped: bool = False) -> Checkpoint:
    """Read a checkpoint for this process. `check(path, trainer)` may refuse it before the rest is read.

    mapped: leave the optimisers' tensors in the file until they are used, for a process that takes a part of each.
    """
    trainer = json.loads((path / TRAINER).read_text(encoding="utf-8"))
    check(path, trainer)
    average = path / AVERAGE
    as_many = trainer["processes"] == distributed.world_size()
    return Checkpoint(
        trainer=trainer,
        weights=load_file(path / WEIGHTS),
        average=load_file(average) if average.exists() else None,
        optimizers=_load(path / OPTIMIZERS, mapped),
        process=_load(path / f"process_{distributed.rank()}.pt") if as_many else None,
    )


def _all(directory: Path) -> list[Path]:
    named = [(re.fullmatch(r"step_(\d+)", path.name), path) for path in directory.glob("step_*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def _prune(directory: Path, step: int, keep: int) -> None:
    """Keep the newest `keep` up to `step`; later ones are damaged (the run went on from before them)."""
    newest = path_of(directory, step)
    found = _all(directory)
    upto = found[: found.index(newest) + 1]
    for path in found:
        if path not in upto[-keep:]:
            shutil.rmtree(path)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and no two sharing memory (tied weights), as safetensors wants them."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def _save_checked(state: Any, path: Path) -> None:
    """Also make sure that it can be read: the loader's state is its own matter, and found out too late."""
    torch.save(state, path)
    try:
        _load(path)
    except pickle.UnpicklingError as error:
        raise RuntimeError("the loader's state_dict holds more than plain values and tensors") from error


def _load(path: Path, mapped: bool = False) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _fingerprint(path: Path) -> dict[str, int]:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(READ_SIZE):
            checksum = zlib.crc32(chunk, checksum)
        return {"bytes": file.tell(), "crc32": checksum}
