"""Two processes under gloo: one training, whoever the number, the signal or the fault comes to."""

from __future__ import annotations

import json
import signal
import socket
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from toy_children import child_rank
from toy_compare import EndState, assert_same, lines_of
from toy_training import (
    GanTask,
    PartsLoader,
    StoppingTask,
    ToyLoader,
    ToyTask,
    UnevenTask,
    plain_config,
    run_toy,
    toy_config,
)

from vilau_common.errors import UserError
from vilau_common.training import Task, TrainingConfig, TrainingInterrupted
from vilau_common.training import checkpoint as checkpoints

WORLD = 2
PATIENCE = 120.0  # seconds


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, processes: ForkServerContext) -> Path:
    """The directory in which two processes have done all the runs of `child_rank`."""
    path = tmp_path_factory.mktemp("processes")
    stop_after_five(path / "grown")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [processes.Process(target=child_rank, args=(rank, WORLD, port, path)) for rank in range(WORLD)]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE)
        child.kill()
    assert [child.exitcode for child in children] == [0] * WORLD
    return path


def stop_after_five(path: Path) -> None:
    """Five of ten steps in one process, on the batches of two."""
    task = StoppingTask(4, signal.SIGTERM, dropout=0.0)
    with pytest.raises(TrainingInterrupted):
        run_toy(path, plain_config(accumulation=WORLD), task, PartsLoader(8, WORLD))


def outcomes(runs: Path, name: str) -> list[str]:
    return [
        json.loads((runs / f"outcome_{rank}.json").read_text(encoding="utf-8"))[name] for rank in range(WORLD)
    ]


@pytest.mark.parametrize(
    ("name", "config", "task"),
    [
        ("joint", plain_config(log_every=2), ToyTask(dropout=0.0)),
        ("adversarial", plain_config(accumulation=2), GanTask()),
        ("adversarial later", plain_config(), GanTask(begin=4)),
        ("uneven", plain_config(accumulation=2), UnevenTask()),
        ("divided joint", plain_config(log_every=2), ToyTask(dropout=0.0)),
        (
            "divided clipped",
            plain_config(log_every=2, gradient_clip=0.01, accumulation=2),
            ToyTask(dropout=0.0),
        ),
    ],
)
def test_two_processes_train_as_one_on_the_joint_batch(
    runs: Path, tmp_path: Path, name: str, config: TrainingConfig, task: Task
) -> None:
    """Weights and logged losses agree up to rounding."""
    assert outcomes(runs, name) == ["done", "done"]
    run_toy(tmp_path, config, task, ToyLoader(8))
    alone, together = EndState.of(tmp_path), EndState.of(runs / name)
    for weight, value in alone.model.items():
        torch.testing.assert_close(together.model[weight], value, rtol=1e-4, atol=1e-6)
    for one, other in zip(alone.metrics, together.metrics, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() & {"loss/main", "loss/discriminator", "gradient_norm"}:
            assert one[key] == pytest.approx(other[key], rel=1e-4)


def test_a_signal_to_one_process_stops_all_and_loses_nothing(runs: Path) -> None:
    line = "TrainingInterrupted: stopped at step 17 by SIGTERM; run the same command to go on"
    assert outcomes(runs, "stopped") == [line, line]
    assert outcomes(runs, "resumed") == ["done", "done"]
    EndState.of(runs / "stopped").assert_equal(EndState.of(runs / "whole"))
    for rank in range(WORLD):
        newest = [
            runs / name / "checkpoints" / "step_000040" / f"process_{rank}.pt"
            for name in ("stopped", "whole")
        ]
        states = [torch.load(file, weights_only=True) for file in newest]
        assert_same(states[0], states[1], f"process {rank}")


def test_processes_draw_their_own_random_numbers(runs: Path) -> None:
    newest = runs / "whole" / "checkpoints" / "step_000040"
    states = [torch.load(newest / f"process_{rank}.pt", weights_only=True)["random"] for rank in range(WORLD)]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])


def test_a_loss_that_is_not_finite_on_one_process_stops_all(runs: Path) -> None:
    for outcome in outcomes(runs, "diverged"):
        assert outcome.startswith("TrainingDiverged: toy: loss/main became nan at step 17")
    assert max(line["step"] for line in lines_of(runs / "diverged")) <= 16


def test_buffers_that_drift_apart_are_refused(runs: Path) -> None:
    """A checkpoint holds rank 0's buffers only: silently another run would be resumed on the other ranks."""
    assert any(
        "RuntimeError: process" in outcome and "seen" in outcome for outcome in outcomes(runs, "drifting")
    )


def test_a_batch_may_leave_parameters_out(runs: Path) -> None:
    """Said by `may_skip_parameters`; without it the processes would wait for each other's gradients."""
    assert outcomes(runs, "skipping") == ["done", "done"]


def test_only_the_first_process_to_fail_tells(runs: Path) -> None:
    assert sorted(outcomes(runs, "first to fail")) == [False, True]


# --- another number of processes --------------------------------------------------------------------------------


def test_another_number_of_processes_keeps_the_batches_of_a_step(runs: Path) -> None:
    with pytest.raises(UserError, match=r"with 4 batches a step \(2 processes.*with training.accumulation=4"):
        run_toy(runs / "diverged", toy_config())
    assert checkpoints.newest_good(runs / "diverged" / "checkpoints") is not None


@pytest.fixture(scope="module")
def resumed_alone(tmp_path_factory: pytest.TempPathFactory) -> EndState:
    """One process all the way, whose data begin anew after five of ten steps."""
    path = tmp_path_factory.mktemp("alone")
    stop_after_five(path)
    run_toy(path, plain_config(accumulation=WORLD), ToyTask(dropout=0.0), PartsLoader(8, WORLD))
    return EndState.of(path)


@pytest.mark.parametrize("name", ["grown", "shrunk"])
def test_any_number_of_processes_goes_on(
    runs: Path, resumed_alone: EndState, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process's run in two with FSDP, and theirs in one: weights, moments and schedule go over."""
    if name == "shrunk":
        task = ToyTask(dropout=0.0)
        run_toy(runs / name, plain_config(accumulation=WORLD), task, PartsLoader(8, WORLD))
        told = capsys.readouterr().out
        assert "going on from step 5 of 10, processes: 1 where there were 2; each reads its share" in told
    else:
        assert outcomes(runs, name) == ["done", "done"]
    ended = EndState.of(runs / name)
    for weight, value in resumed_alone.model.items():
        torch.testing.assert_close(ended.model[weight], value, rtol=1e-4, atol=1e-6)


# --- FSDP -------------------------------------------------------------------------------------------------------


def test_a_divided_run_resumes_bit_for_bit(runs: Path) -> None:
    """Averaged weights, accumulation, clipping, schedule; the saved weights are whole, and the averaged ones."""
    assert outcomes(runs, "divided whole") == outcomes(runs, "divided resumed") == ["done", "done"]
    assert all("stopped at step 17 by SIGUSR1" in outcome for outcome in outcomes(runs, "divided stopped"))
    whole = EndState.of(runs / "divided whole")
    EndState.of(runs / "divided stopped").assert_equal(whole)
    average = whole.checkpoint.average
    assert average is not None
    for name, weight in ToyTask().network.named_parameters():
        assert whole.model[name].shape == weight.shape
        assert torch.equal(whole.model[name], average[name])


def test_a_divided_run_does_what_ddp_does(runs: Path) -> None:
    """Dropout's random numbers, averaged weights, and evaluations, whose gathered weights must be let go."""
    whole, divided = (lines_of(runs / name) for name in ("whole adamw", "divided whole"))
    for one, other in zip(whole, divided, strict=True):
        assert one.pop("stage") == other.pop("stage")
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert not (runs / "divided whole" / "samples").exists(), "no process can draw alone"


def test_divided_batches_may_leave_parameters_out(runs: Path) -> None:
    assert outcomes(runs, "divided partly") == ["done", "done"]
    whole, divided = (EndState.of(runs / name) for name in ("partly", "divided partly"))
    for name, weight in whole.model.items():
        torch.testing.assert_close(divided.model[name], weight, rtol=1e-4, atol=1e-6)


def test_a_divided_run_that_diverges_stops_all(runs: Path) -> None:
    for outcome in outcomes(runs, "divided diverged"):
        assert outcome.startswith("TrainingDiverged: toy: loss/main became nan at step 17")


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fsdp2 is not for this training: use training.parallel=ddp"):
        run_toy(tmp_path, plain_config(parallel="fsdp2"), GanTask())
    with pytest.raises(UserError, match="muon works on whole matrices"):
        toy_config(parallel="fsdp2")
