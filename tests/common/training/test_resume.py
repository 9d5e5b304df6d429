"""A run that was killed, stopped or damaged and started again ends exactly as one that was left alone."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from toy_training import (
    EndState,
    ToyTask,
    assert_same,
    child_killed_in_checkpoint,
    child_slow_run,
    lines_of,
    run_toy,
    toy_config,
)

from vilau_common.errors import UserError
from vilau_common.run import RunDirectory
from vilau_common.training import StepOutput, TrainingDiverged, TrainingInterrupted
from vilau_common.training import checkpoint as checkpoints

PATIENCE = 60.0  # seconds; a child that takes longer hangs


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> EndState:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("run") / "uninterrupted"
    run_toy(path)
    return EndState.of(path)


class StoppingTask(ToyTask):
    """Sends a signal to its own process in the middle of a step."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__()
        self.stop_step, self.number = step, number

    def training_step(self, network, batch, step):
        if step == self.stop_step:
            os.kill(os.getpid(), self.number)
        return super().training_step(network, batch, step)


class FailingTask(ToyTask):
    """Its loss is not finite at one step."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__()
        self.bad_step, self.value = step, value

    def training_step(self, network, batch, step):
        output = super().training_step(network, batch, step)
        if step == self.bad_step:
            return StepOutput({"main": output.losses["main"] * self.value})
        return output


@pytest.mark.parametrize("kill_seed", [0, 1])
def test_killed_at_random_moments(
    tmp_path: Path, processes: ForkServerContext, uninterrupted: EndState, kill_seed: int
) -> None:
    """SIGKILL, several times, wherever the process happens to be."""
    path = tmp_path / "run"
    delays = random.Random(kill_seed)
    killed = 0
    for _ in range(4):
        child = processes.Process(target=child_slow_run, args=(path, 0.003))
        child.start()
        wait_for_line(path / "metrics.jsonl", child)
        child.join(delays.uniform(0.0, 0.3))
        child.kill()
        child.join(PATIENCE)
        killed += child.exitcode == -signal.SIGKILL
    assert killed, "the run ended before it could be killed"
    run_toy(path)
    EndState.of(path).assert_equal(uninterrupted)


def wait_for_line(file: Path, child: BaseProcess) -> None:
    """Until the child has written to the file, or is through."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    deadline = time.monotonic() + PATIENCE
    while child.is_alive() and time.monotonic() < deadline:
        if file.exists() and file.stat().st_size and file.stat().st_mtime_ns != before:
            return
        time.sleep(0.002)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("moment", ["while writing", "before renaming", "before pruning"])
def test_killed_in_the_middle_of_a_checkpoint(
    tmp_path: Path, processes: ForkServerContext, uninterrupted: EndState, moment: str, number: int
) -> None:
    path = tmp_path / "run"
    child = processes.Process(target=child_killed_in_checkpoint, args=(path, moment, number))
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == -signal.SIGKILL
    finished = number if moment == "before pruning" else number - 1
    newest = checkpoints.newest_good(path / "checkpoints")
    assert newest == (checkpoints.path_of(path / "checkpoints", 5 * finished) if finished else None)
    run_toy(path)
    EndState.of(path).assert_equal(uninterrupted)
    assert not list(path.rglob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("step", [7, 19, 39])
def test_stopped_by_a_signal(
    tmp_path: Path, uninterrupted: EndState, capsys: pytest.CaptureFixture[str], step: int, number: signal.Signals
) -> None:
    """The step is finished, a checkpoint written, one clear line told, the handlers put back."""
    handlers = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)]
    with pytest.raises(TrainingInterrupted) as caught:
        run_toy(tmp_path, task=StoppingTask(step, number))
    line = f"stopped at step {step + 1} by {number.name}; run the same command to go on"
    assert str(caught.value) == line
    assert line in capsys.readouterr().out
    assert caught.value.exit_status == 128 + number
    assert [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)] == handlers
    assert checkpoints.path_of(tmp_path / "checkpoints", step + 1).exists()
    run_toy(tmp_path)
    assert f"going on from step {step + 1} of 40" in capsys.readouterr().out
    EndState.of(tmp_path).assert_equal(uninterrupted)


def test_a_terminated_process_exits_143(tmp_path: Path, processes: ForkServerContext) -> None:
    child = processes.Process(target=child_slow_run, args=(tmp_path / "run", 0.02))
    child.start()
    wait_for_line(tmp_path / "run" / "metrics.jsonl", child)
    child.terminate()
    child.join(PATIENCE)
    assert child.exitcode == 143
    assert checkpoints.newest_good(tmp_path / "run" / "checkpoints") is not None


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "manifest", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, uninterrupted: EndState, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """The run goes on from the one before, and says so."""
    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, task=StoppingTask(12, signal.SIGTERM))
    newest = checkpoints.path_of(tmp_path / "checkpoints", 13)
    weights = newest / checkpoints.WEIGHTS
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "flip":
        contents = bytearray(weights.read_bytes())
        contents[-1] ^= 1
        weights.write_bytes(contents)
    elif damage == "delete":
        weights.unlink()
    elif damage == "manifest":
        (newest / checkpoints.MANIFEST).write_text("{", encoding="utf-8")
    else:
        (newest / checkpoints.MANIFEST).unlink()
    with caplog.at_level(logging.WARNING):
        run_toy(tmp_path)
    assert "step_000013 is damaged" in caplog.text
    assert "going on from step 10" in (tmp_path / "log.txt").read_text(encoding="utf-8")
    EndState.of(tmp_path).assert_equal(uninterrupted)
    assert not newest.exists()


def test_a_damaged_checkpoint_is_replaced_even_when_one_is_kept(tmp_path: Path) -> None:
    """Going over the damaged one's step again must not cost the good one that was just written."""
    config = toy_config(keep_checkpoints=1)
    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, config, StoppingTask(4, signal.SIGTERM))
    fake = checkpoints.path_of(tmp_path / "checkpoints", 20)
    fake.mkdir()
    (fake / checkpoints.MANIFEST).write_text('{"trainer.json": {"bytes": 1, "crc32": 1}}', encoding="utf-8")
    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, config, StoppingTask(16, signal.SIGTERM))
    assert checkpoints.newest_good(tmp_path / "checkpoints") == checkpoints.path_of(fake.parent, 17)
    assert not fake.exists()


def test_without_any_good_checkpoint_nothing_is_started_anew(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, task=StoppingTask(12, signal.SIGTERM))
    for file in (tmp_path / "checkpoints").glob("*/trainer.json"):
        file.write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="no checkpoint in .* can be read"):
        run_toy(tmp_path)


def test_old_checkpoints_are_pruned(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_config(keep_checkpoints=3))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_000030", "step_000035", "step_000040"]


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path, uninterrupted: EndState) -> None:
    """Lines after the checkpoint, also a half-written one, are of steps that will be done again."""
    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, task=StoppingTask(12, signal.SIGTERM))
    metrics = tmp_path / "metrics.jsonl"
    before = metrics.read_text(encoding="utf-8")
    with metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 15, "stage": "toy", "loss/main": 1.0}\n{"step": 18, "sta')
    run_toy(tmp_path)
    assert metrics.read_text(encoding="utf-8").startswith(before)
    assert lines_of(tmp_path) == uninterrupted.metrics


def test_a_finished_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_toy(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    again = run_toy(tmp_path)
    assert again.already_finished
    assert not first.already_finished
    assert (again.step, again.metrics, again.seconds) == (first.step, first.metrics, first.seconds)
    assert "finished already, 40 steps" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_death_in_the_final_evaluation_costs_no_training(tmp_path: Path, uninterrupted: EndState) -> None:
    class DyingTask(ToyTask):
        def save_model(self, directory):
            super().save_model(directory)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, task=DyingTask())
    assert not (tmp_path / "model").exists()
    run_toy(tmp_path, task=FailingTask(0, float("nan")))  # no step is left to fail in
    EndState.of(tmp_path).assert_equal(uninterrupted)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, value: float) -> None:
    """One sentence names the step, the loss and the last good checkpoint; neither weights nor metrics hold it."""
    with pytest.raises(TrainingDiverged) as caught:
        run_toy(tmp_path, task=FailingTask(12, value))
    newest = checkpoints.path_of(tmp_path / "checkpoints", 10)
    message = str(caught.value)
    assert f"loss/main became {value} at step 13" in message
    assert str(newest) in message
    assert "learning_rate" in message
    assert isinstance(caught.value, UserError)
    assert checkpoints.newest_good(tmp_path / "checkpoints") == newest
    assert max(line["step"] for line in lines_of(tmp_path)) == 12
    assert message in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_an_infinite_gradient_stops_the_run(tmp_path: Path) -> None:
    """The loss may be finite while its gradient is not: sqrt at 0."""

    class InfiniteGradient(ToyTask):
        def training_step(self, network, batch, step):
            output = super().training_step(network, batch, step)
            return StepOutput({"main": (output.losses["main"] * 0).sqrt()})

    with pytest.raises(TrainingDiverged, match=r"gradient_norm became nan at step 1; there is no checkpoint yet"):
        run_toy(tmp_path, task=InfiniteGradient())


def test_spoilt_weights_are_never_written(tmp_path: Path) -> None:
    class SpoilingTask(ToyTask):
        def after_step(self, step):
            if step == 10:
                self.network.first.weight.data[0, 0] = float("inf")

    with pytest.raises(TrainingDiverged, match="a weight became infinite"):
        run_toy(tmp_path, task=SpoilingTask())
    assert checkpoints.newest_good(tmp_path / "checkpoints") == checkpoints.path_of(tmp_path / "checkpoints", 5)


def test_a_full_disk_is_told_and_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors, file):
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, task=StoppingTask(4, signal.SIGTERM))
    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match=r"step_000010 cannot be written: No space left on device"):
        run_toy(tmp_path)
    assert checkpoints.newest_good(tmp_path / "checkpoints") == checkpoints.path_of(tmp_path / "checkpoints", 5)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, task=StoppingTask(4, signal.SIGTERM))
    with pytest.raises(UserError, match="other training settings"):
        run_toy(tmp_path, toy_config(steps=80))
    run_toy(tmp_path, toy_config(keep_checkpoints=1, checkpoint_every=None))  # these change no number


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).lock(), pytest.raises(UserError, match="in use by another process"):
        run_toy(tmp_path)


def test_evaluation_does_not_disturb_training(tmp_path: Path, uninterrupted: EndState) -> None:
    run_toy(tmp_path, toy_config(evaluate_every=1, sample_every=None, checkpoint_every=None))
    assert_same(EndState.of(tmp_path).checkpoint.weights, uninterrupted.checkpoint.weights, "weights")


def test_what_a_finished_run_directory_holds(tmp_path: Path) -> None:
    run_toy(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"metrics.jsonl", "log.txt", "checkpoints", "model", "samples", "finished.json"}
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step_000020", "step_000040"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [line for line in lines if "loss/main" in line]
    assert [line["step"] for line in training] == [*range(3, 40, 3), 40]
    assert training[0]["train/step"] == 1.0  # the mean of steps 0, 1 and 2
    assert {"learning_rate", "gradient_norm", "time/units_per_second", "time/step_seconds"} <= training[0].keys()
    assert [line["step"] for line in lines if "evaluate/bias" in line] == [10, 20, 30, 40]
