"""A training that is killed goes on as if nothing had happened; one that is asked to stop does so in good order."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_line import STEPS, Line, command, environment, vilau

PATIENCE = 120.0


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def start(line: Line, verb: str, run: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*line.arguments(verb, run)),
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not list(run.glob(f"checkpoints/step_{6 * '[0-9]'}/manifest.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)


@pytest.mark.parametrize("verb", ["train-tower", "train-lm"])
def test_killed_and_started_again_equals_uninterrupted(line: Line, tmp_path: Path, verb: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert vilau(*line.arguments(verb, whole)).returncode == 0
    process = start(line, verb, killed)
    wait_for_checkpoint(killed, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "finished.json").exists(), "the kill came too late to show anything"
    again = vilau(*line.arguments(verb, killed))
    assert again.returncode == 0, again.stderr
    assert f"of {STEPS}" in again.stdout and "going on from step" in again.stdout
    assert metrics(killed) == metrics(whole)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(bool((ours[name] == theirs[name]).all()) for name in ours)


def test_sigterm_writes_a_checkpoint_and_says_so(line: Line, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(line, "train-tower", run)
    wait_for_checkpoint(run, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    if process.returncode == 0:
        pytest.fail("the signal came too late to show anything")
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "run the same command to go on" in output and "Traceback" not in output
