from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import loader_toy
import pytest
import torch
from loader_toy import toy_loader

from vilau_common.data import loader as loader_module
from vilau_common.data import loader_process
from vilau_common.errors import UserError

FOLLOWED = 5  # batches compared after each resume


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint gives back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resumed_batches_equal_continued_ones(
    pictures: Path, workers: int, packing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Short, so that states with notes of several ages occur.
    monkeypatch.setattr(loader_module, "_SECONDS_BETWEEN_NOTES", 0.02)
    saved_at = (0, 1, 4, 37)  # within the first epoch, and after it
    loader = toy_loader(pictures, workers=workers, packing=packing)
    digests, states = [], {}
    for step in range(max(saved_at) + FOLLOWED):
        if step in saved_at:
            states[step] = stored(loader.state_dict())
        digests.append(next(loader).digest())
    loader.close()
    assert len(set(digests)) == len(digests)
    for step, state in states.items():
        resumed = toy_loader(pictures, workers=workers, packing=packing)
        resumed.load_state_dict(state)
        assert [next(resumed).digest() for _ in range(FOLLOWED)] == digests[step : step + FOLLOWED]
        resumed.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_may_be_interrupted_again_at_once(pictures: Path, workers: int) -> None:
    loader = toy_loader(pictures, workers=workers, packing=True)
    digests = [next(loader).digest() for _ in range(20)]
    loader.close()

    loader = toy_loader(pictures, workers=workers, packing=True)
    assert [next(loader).digest() for _ in range(9)] == digests[:9]
    for step in range(9, 14):
        state = stored(loader.state_dict())
        loader.close()
        loader = toy_loader(pictures, workers=workers, packing=True)
        loader.load_state_dict(state)
        # Also before the first batch after a resume, and before every worker has delivered one.
        assert_equal_states(stored(loader.state_dict()), state)
        assert next(loader).digest() == digests[step]
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_split_sample_goes_on_where_it_was_interrupted(
    pictures: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "_SECONDS_BETWEEN_NOTES", 0.0)  # a note after every pack, however fast
    loader = toy_loader(pictures, workers=workers, packing=True, splitting=True)
    digests, states, keys = [], [], []
    for _ in range(12):
        states.append(stored(loader.state_dict()))
        batch = next(loader)
        digests.append(batch.digest())
        keys += [key for row in batch.keys for key in row]
    loader.close()
    assert {key.partition(".")[2] for key in keys} == {"0", "1", "2", "3", "4"}
    assert any(values_of(state, "_unfinished") for state in states[:8])  # saved between parts of a sample
    for step, state in enumerate(states[:8]):
        resumed = toy_loader(pictures, workers=workers, packing=True, splitting=True)
        resumed.load_state_dict(state)
        assert [next(resumed).digest() for _ in range(4)] == digests[step : step + 4]
        resumed.close()


def values_of(state: Any, name: str) -> list[Any]:
    """Every value but None that is called `name` somewhere in nested dicts and lists."""
    if isinstance(state, dict):
        found = [state[name]] if state.get(name) is not None else []
        return found + [value for item in state.values() for value in values_of(item, name)]
    if isinstance(state, (list, tuple)):
        return [value for item in state for value in values_of(item, name)]
    return []


def assert_equal_states(first: Any, second: Any) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal_states(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal_states(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


def test_a_state_saved_while_a_worker_is_still_starting(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_worker = loader_process.WorkerStart.__call__

    def start_slowly(self: loader_process.WorkerStart, worker: int) -> None:
        start_worker(self, worker)
        if worker == 1:
            time.sleep(0.3)  # the request for its state is there before it has begun
            start_thread = threading.Thread.start
            threading.Thread.start = lambda thread: (start_thread(thread), time.sleep(0.1))[0]

    loader = toy_loader(pictures, workers=2, packing=False)
    digests = [next(loader).digest() for _ in range(8)]
    loader.close()
    monkeypatch.setattr(loader_process.WorkerStart, "__call__", start_slowly)
    state = None
    for step in range(4):
        loader = toy_loader(pictures, workers=2, packing=False)
        if state is not None:
            loader.load_state_dict(state)
        assert next(loader).digest() == digests[step]
        state = stored(loader.state_dict())
        loader.close()


def test_saving_does_not_change_what_comes(pictures: Path) -> None:
    plain, saving = (toy_loader(pictures, workers=1, packing=True) for _ in range(2))
    for _ in range(12):
        saving.state_dict()
        assert next(saving).digest() == next(plain).digest()
    plain.close()
    saving.close()


def test_another_loaders_state_is_refused_by_name(pictures: Path) -> None:
    state = toy_loader(pictures, workers=0, packing=False).state_dict()
    for loader, change in (
        (toy_loader(pictures, workers=1, packing=False), "workers was 0 and is 1"),
        (toy_loader(pictures, workers=0, packing=False, seed=9), "seed was 5 and is 9"),
        (toy_loader(pictures, workers=0, packing=True), "packing_buffer was 0 and is 30"),
    ):
        with pytest.raises(UserError, match=change):
            loader.load_state_dict(state)


def test_a_moved_data_set_goes_on(pictures: Path, tmp_path: Path) -> None:
    loader = toy_loader(pictures, workers=0, packing=False)
    next(loader)
    state = loader.state_dict()
    moved = tmp_path / "elsewhere"
    moved.symlink_to(pictures)
    resumed = toy_loader(moved, workers=0, packing=False)
    resumed.load_state_dict(state)
    assert next(resumed).digest() == next(loader).digest()


def test_killed_process_leaves_no_workers_and_a_new_one_goes_on(pictures: Path, tmp_path: Path) -> None:
    command = [sys.executable, loader_toy.__file__, str(pictures), str(tmp_path / "state.pt"), str(FOLLOWED)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        before = [process.stdout.readline() for _ in range(10)]
        assert all(len(line) == 17 for line in before)
        os.killpg(process.pid, signal.SIGTERM)  # as schedulers do: the workers get it as well
        while (line := process.stdout.readline()) != "saved\n":
            assert line, "the program ended on SIGTERM without having saved"
        continued = [process.stdout.readline() for _ in range(FOLLOWED)]
        workers = json.loads(process.stdout.readline())
        assert len(workers) == 2
        assert all(running(worker) for worker in workers)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while any(running(worker) for worker in workers):
            assert time.monotonic() < deadline, "workers outlived their process"
            time.sleep(0.05)
    finally:
        process.kill()
    resumed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert resumed.stdout.splitlines(keepends=True) == continued


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
