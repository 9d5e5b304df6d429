"""A run: its directory, its random numbers, and the state of the source it ran from.

    runs/<name>/  config.yaml  metrics.jsonl  log.txt  checkpoints/step_NNNNNN/  model/  samples/
                  results.json  report/index.html  finished.json

A run directory is complete and movable: nothing in it names a place outside it.
"""

from __future__ import annotations

import fcntl
import json
import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from vilau_common import atomic, distributed
from vilau_common.errors import UserError
from vilau_common.settings import flat

DIFFERENCES_SHOWN = 5


class RunDirectory:
    """The paths of one run, and what may be done with the directory as a whole.

    Making the object touches no disk; `claim`, `create` and the writers make the directory.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "log.txt"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.samples = self.path / "samples"
        self.results = self.path / "results.json"
        self.report = self.path / "report"
        self._finished = self.path / "finished.json"

    def __str__(self) -> str:
        return str(self.path)

    def create(self) -> None:
        """Make the directory if it is missing."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"run directory {self.path} cannot be made: a file is in its place") from None

    def claim(self, config: Mapping[str, Any], ignore: Sequence[str] = ()) -> None:
        """Record `config` in config.yaml, or check that the run was started with this same configuration.

        config: plain nested values (mappings, sequences, strings, numbers, booleans, None).
        ignore: dotted keys that may differ between the starts of one run, such as "training.log_every"; a key
            also covers everything below it.
        UserError: the directory belongs to a run with another configuration.
        """
        self.create()
        text = yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False, allow_unicode=True)
        if not self.config.exists():
            if distributed.is_main():
                atomic.write_text(self.config, text)
            return
        old = flat(yaml.safe_load(self.config.read_text(encoding="utf-8")) or {})
        new = flat(yaml.safe_load(text) or {})
        different = [
            key
            for key in [*old, *(new.keys() - old.keys())]
            if old.get(key, _ABSENT) != new.get(key, _ABSENT) and not _covered(key, ignore)
        ]
        if different:
            shown = [f"{key} {_told(old, key)} -> {_told(new, key)}" for key in different[:DIFFERENCES_SHOWN]]
            if len(different) > DIFFERENCES_SHOWN:
                shown.append(f"and {len(different) - DIFFERENCES_SHOWN} more")
            raise UserError(
                f"run directory {self.path} was started with another configuration ({', '.join(shown)}): a run "
                "goes on only with its own, its number of steps included (the schedule depends on it), so name "
                "another run directory or delete this one"
            )

    def finished(self) -> dict[str, Any] | None:
        """What `mark_finished` recorded, or None while the run has not come to its end."""
        if not self._finished.exists():
            return None
        record: dict[str, Any] = json.loads(self._finished.read_text(encoding="utf-8"))
        return record

    def mark_finished(self, record: Mapping[str, Any]) -> None:
        """Say that the run has come to its end; from now on starting it again does nothing."""
        atomic.write_text(self._finished, json.dumps(record, indent=1) + "\n")

    def add_results(self, numbers: Mapping[str, float]) -> None:
        """Merge `numbers` into results.json, one flat object of numbers."""
        self.create()
        old = json.loads(self.results.read_text(encoding="utf-8")) if self.results.exists() else {}
        atomic.write_text(self.results, json.dumps({**old, **numbers}, indent=1) + "\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process out of this directory; the system frees the lock however the process ends.

        A lock of the process (lockf), not of the open file (flock): a loader's worker that outlives its killed
        parent must not hold it.
        """
        self.create()
        with (self.path / ".lock").open("w", encoding="utf-8") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(
                    f"run directory {self.path} is in use by another process: wait for its end or "
                    "stop it, or name another run directory"
                ) from None
            yield


_ABSENT = object()


def _covered(key: str, ignore: Sequence[str]) -> bool:
    return any(key == ignored or key.startswith(f"{ignored}.") for ignored in ignore)


def _told(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "absent"


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch (all devices); every rank gets numbers of its own. UserError: seed is negative."""
    if seed < 0:
        raise UserError(f"seed is {seed}; it is 0 or more")
    python_seed, numpy_seed, torch_seed = np.random.SeedSequence([seed, rank]).generate_state(3)
    random.seed(int(python_seed))
    np.random.seed(int(numpy_seed))  # noqa: NPY002 - third parties draw from NumPy's global generator
    torch.manual_seed(int(torch_seed))


def random_state() -> dict[str, Any]:
    """The state of every global generator, in plain values that `torch.load(weights_only=True)` reads."""
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), position, has_gauss, cached_gaussian),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put every global generator back to what `random_state` returned."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numpy_keys, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state((name, np.array(numpy_keys, dtype=np.uint32), position, has_gauss, cached_gaussian))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def isolated_random(seed: int, rank: int = 0) -> Iterator[None]:
    """Run a block on generators seeded with `seed`; the outer streams go on as if nothing had happened."""
    outer = random_state()
    seed_everything(seed, rank)
    try:
        yield
    finally:
        set_random_state(outer)


@dataclass(frozen=True)
class GitState:
    """The commit a source tree is at, and whether it has uncommitted changes; None where git cannot tell."""

    commit: str | None
    dirty: bool | None


def git_state(directory: Path | None = None) -> GitState:
    """The git state of `directory` (None: of this package's own source); never fails."""
    where = directory if directory is not None else Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain")
    return GitState(
        commit=git("rev-parse", "--verify", "HEAD"), dirty=None if status is None else bool(status)
    )
