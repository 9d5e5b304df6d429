"""Trainings in several processes and as jobs: torchrun, the sbatch script with a stand-in for SLURM, submitit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from tiny_line import STEPS, Line, command, environment, vilau

from vilau_unified_lm.cli import main

ROOT = Path(__file__).parents[2]
SBATCH = ROOT / "scripts" / "slurm" / "train.sbatch"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
PATIENCE = 170.0

# Fails in one process only, in the middle of training.
ONE_FAILS = """
import os, sys
from vilau_common.errors import UserError
from vilau_unified_lm.cli import main
from vilau_unified_lm.task import UnifiedTask

step_before = UnifiedTask.training_step

def failing(self, network, batch, step):
    if step == 2 and os.environ["RANK"] == "1":
        raise UserError("the data of process 1 are gone")
    return step_before(self, network, batch, step)

UnifiedTask.training_step = failing
sys.exit(main(sys.argv[1:]))
"""

# Node 0 of 1; leaves its own options to SLURM.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$SCONTROL_LOG"; fi
"""


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no {what} came"
        time.sleep(0.02)


def has_checkpoint(run: Path) -> bool:
    return bool(list(run.glob(f"checkpoints/step_{6 * '[0-9]'}/manifest.json")))


def weights(run: Path) -> dict[str, object]:
    return {name: value.tolist() for name, value in load_file(run / "model" / "model.safetensors").items()}


def start(arguments: list[str], **changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        env={**environment(), **changes},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
    )


# --- torchrun ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train-tower", "train-lm"])
def test_one_process_speaks_for_all(line: Line, tmp_path: Path, verb: str) -> None:
    run = tmp_path / "run"
    arguments = [*TORCHRUN, "-m", "vilau_unified_lm.cli", *line.arguments(verb, run, steps=6)]
    output, _ = (process := start(arguments)).communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert output.count("finished 6 steps") == 1
    assert (run / "log.txt").read_text().count("finished 6 steps") == 1
    assert (run / "metrics.jsonl").read_text().count('"loss/main"') == 6
    assert "destroy_process_group" not in output
    assert {file.name for file in run.glob("checkpoints/step_000006/process_*.pt")} == {
        "process_0.pt",
        "process_1.pt",
    }


@pytest.mark.slow
def test_one_sentence_tells_what_ended_all(line: Line, tmp_path: Path) -> None:
    script = tmp_path / "one_fails.py"
    script.write_text(ONE_FAILS)
    process = start([*TORCHRUN, str(script), *line.arguments("train-lm", tmp_path / "run")])
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert output.count("vilau: error: ") == 1 and "the data of process 1 are gone" in output
    assert "closed by peer" not in output


@pytest.mark.slow
def test_a_mistake_in_the_settings_is_told_once(line: Line, tmp_path: Path) -> None:
    arguments = [*line.arguments("train-tower", tmp_path / "run"), "training.parallel=fsdp2"]
    output, _ = (process := start([*TORCHRUN, "-m", "vilau_unified_lm.cli", *arguments])).communicate(
        timeout=PATIENCE
    )
    assert process.returncode != 0
    assert output.count("vilau: error: ") == 1
    assert "training.parallel=fsdp2 is not for a vision tower" in output


# --- sbatch -----------------------------------------------------------------------------------------------------


def test_the_sbatch_script_is_bash() -> None:
    assert subprocess.run(["bash", "-n", SBATCH], check=False).returncode == 0


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on one node with two processes, and commands that stand in for SLURM's."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    return {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SCONTROL_LOG": str(tmp_path / "scontrol.log"),
        "PYTHON": sys.executable,
        "PROCESSES_PER_NODE": "2",
        "SLURM_JOB_ID": str(1000 + os.getpid()),
        "SLURM_JOB_NODELIST": "node",
        "SLURM_NNODES": "1",
        "KILL_WAIT": "0",
    }


@pytest.mark.slow
def test_a_job_about_to_end_is_requeued_and_goes_on(
    line: Line, tmp_path: Path, cluster: dict[str, str]
) -> None:
    run = tmp_path / "run"
    script = ["bash", str(SBATCH), *line.arguments("train-lm", run)]
    process = start(script, **cluster)
    wait_for(lambda: has_checkpoint(run), process, "checkpoint")
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0, output
    assert "by SIGUSR1; run the same command to go on" in output
    requeued = f"requeue {cluster['SLURM_JOB_ID']}\n"
    assert Path(cluster["SCONTROL_LOG"]).read_text() == requeued
    output, _ = (process := start(script, **cluster)).communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert "going on from step" in output and f"finished {STEPS} steps" in output
    assert Path(cluster["SCONTROL_LOG"]).read_text() == requeued


@pytest.mark.slow
def test_a_cancelled_or_failing_job_is_not_requeued(
    line: Line, tmp_path: Path, cluster: dict[str, str]
) -> None:
    run = tmp_path / "run"
    process = start(["bash", str(SBATCH), *line.arguments("train-tower", run)], **cluster)
    wait_for(lambda: has_checkpoint(run), process, "checkpoint")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "by SIGTERM; run the same command to go on" in output
    process = start(["bash", str(SBATCH), "train-lm", "no_such_key=1"], **cluster)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0 and output.count("vilau: error: ") == 1
    assert not Path(cluster["SCONTROL_LOG"]).exists()


# --- submitit ---------------------------------------------------------------------------------------------------


def test_a_mistake_in_a_job_is_told_before_it_is_submitted(
    line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*line.arguments("train-lm", run), "hydra/launcher=slurm", "lm.towre=x"]) == 2
    assert "lm.towre" in capsys.readouterr().err
    assert main([*line.arguments("train-lm", run), "hydra.launcher.partition=gpu"]) == 2
    assert "hydra/launcher=" in capsys.readouterr().err
    assert not run.exists()
    assert main([*line.arguments("train-lm", run), "hydra/launcher=slurm"]) == 2
    assert "hydra/launcher=slurm needs SLURM" in capsys.readouterr().err


@pytest.mark.slow
def test_submitit_requeues_a_training_with_its_checkpoint(line: Line, tmp_path: Path) -> None:
    """The signal that SLURM sends before a job's time is over; the job ends as one that was left alone."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    process = start(command(*line.arguments("train-lm", run), "hydra/launcher=submitit_local"))
    wait_for(lambda: has_checkpoint(run), process, "checkpoint")
    (job,) = (run / ".submitit").glob("[0-9]*")
    (task,) = psutil.Process(int(job.name)).children()
    task.send_signal(signal.SIGUSR2)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    log = "".join(file.read_text() for file in job.glob("*_log.*"))
    assert "stopped at step" in log and "Requeued job" in log and "going on from step" in log
    assert vilau(*line.arguments("train-lm", whole)).returncode == 0
    assert weights(run) == weights(whole)


@pytest.mark.slow
def test_submitit_trains_in_two_tasks(line: Line, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"]
    arguments = [*line.arguments("train-tower", run, steps=6), *launcher]
    output, _ = (process := start(command(*arguments))).communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert (run / "checkpoints" / "step_000006" / "process_1.pt").is_file()


@pytest.mark.slow
def test_a_jobs_error_is_told_where_it_was_submitted(line: Line, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*line.arguments("train-lm", run), "lm.tower=nowhere", "hydra/launcher=submitit_local"]
    output, _ = (process := start(command(*arguments))).communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "vilau: error: " in output and "nowhere" in output and "Traceback" not in output
