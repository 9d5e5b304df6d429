"""A run that was killed or stopped and started again ends exactly as one that was left alone."""

from __future__ import annotations

import json
import random
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from toy_children import PATIENCE, child_killed_in_checkpoint, child_slow_run, wait_for_line
from toy_compare import EndState, assert_same, lines_of
from toy_training import FailingTask, StoppingTask, ToyLoader, ToyTask, run_toy, toy_config

from vilau_common.errors import UserError
from vilau_common.training import TrainingInterrupted
from vilau_common.training import checkpoint as checkpoints


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
    tmp_path: Path,
    uninterrupted: EndState,
    capsys: pytest.CaptureFixture[str],
    step: int,
    number: signal.Signals,
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


def test_other_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, task=StoppingTask(4, signal.SIGTERM))
    with pytest.raises(UserError, match="other training settings"):
        run_toy(tmp_path, toy_config(steps=80))
    run_toy(tmp_path, toy_config(keep_checkpoints=1, checkpoint_every=None))  # these change no number


def test_two_processes_do_not_share_a_run(tmp_path: Path, processes: ForkServerContext) -> None:
    child = processes.Process(target=child_slow_run, args=(tmp_path, 0.05))
    child.start()
    wait_for_line(tmp_path / "metrics.jsonl", child)
    with pytest.raises(UserError, match="in use by another process"):
        run_toy(tmp_path)
    child.kill()
    child.join(PATIENCE)
    run_toy(tmp_path)


def test_other_data_are_refused(tmp_path: Path, uninterrupted: EndState) -> None:
    """Also where another number of processes takes up no position of a loader, which would tell."""

    class Named(ToyLoader):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.sources = [(name, "text", 1.0)]

    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, task=StoppingTask(12, signal.SIGTERM), loader=Named("a"))
    with pytest.raises(UserError, match=r"step_000013 was written with other data \(\[\['a', .*now \[\['b'"):
        run_toy(tmp_path, loader=Named("b"))
    run_toy(tmp_path, loader=Named("a"))
    assert_same(EndState.of(tmp_path).checkpoint.weights, uninterrupted.checkpoint.weights, "weights")


def test_a_loader_must_not_end(tmp_path: Path) -> None:
    class Short(ToyLoader):
        def __iter__(self):
            yield next(super().__iter__())

    with pytest.raises(RuntimeError, match="the loader ended"):
        run_toy(tmp_path, loader=Short())


def test_evaluation_does_not_disturb_training(tmp_path: Path, uninterrupted: EndState) -> None:
    run_toy(tmp_path, toy_config(evaluate_every=1, sample_every=None, checkpoint_every=None))
    assert_same(EndState.of(tmp_path).checkpoint.weights, uninterrupted.checkpoint.weights, "weights")


def test_what_a_finished_run_directory_holds(tmp_path: Path) -> None:
    run_toy(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"metrics.jsonl", "log.txt", "checkpoints", "model", "samples", "finished.json"}
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step_000020", "step_000040"]
    lines = [
        json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    training = [line for line in lines if "loss/main" in line]
    assert [line["step"] for line in training] == [*range(3, 40, 3), 40]
    assert training[0]["train/step"] == 1.0  # the mean of steps 0, 1 and 2
    assert {"learning_rate", "gradient_norm", "time/units_per_second", "time/step_seconds"} <= training[
        0
    ].keys()
    assert [line["step"] for line in lines if "evaluate/mean" in line] == [10, 20, 30, 40]
