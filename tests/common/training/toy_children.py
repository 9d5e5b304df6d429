"""What tests run in processes of their own."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch import Tensor, nn
from toy_training import (
    FailingTask,
    GanTask,
    StoppingTask,
    ToyLoader,
    ToyNetwork,
    ToyTask,
    UnevenTask,
    plain_config,
    run_toy,
    toy_config,
)

from vilau_common import atomic, distributed
from vilau_common.errors import UserError
from vilau_common.training import (
    OptimizerConfig,
    StepOutput,
    Task,
    TrainingConfig,
    TrainingInterrupted,
)
from vilau_common.training import checkpoint as checkpoints

PATIENCE = 60.0  # seconds; a child that takes longer hangs


def child_run(path: Path, config: TrainingConfig | None, task: Task | None = None) -> None:
    """Train; exit as an entry point does."""
    torch.set_num_threads(1)
    try:
        run_toy(path, config, task)
    except TrainingInterrupted as interrupted:
        raise SystemExit(interrupted.exit_status) from None


def child_slow_run(path: Path, sleep: float) -> None:
    """Train with pauses."""
    child_run(path, toy_config(), ToyTask(sleep=sleep))


def child_killed_in_checkpoint(path: Path, moment: str, number: int) -> None:
    """Train, and die by SIGKILL at a moment of the `number`-th checkpoint's writing."""
    passed = 0

    def die_if_due() -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            os.kill(os.getpid(), signal.SIGKILL)

    real_save, real_commit, real_prune = checkpoints.save_file, atomic.commit_directory, checkpoints._prune

    def dying_save(tensors: dict[str, Tensor], file: Path) -> None:
        if file.name == checkpoints.WEIGHTS:
            file.write_bytes(b"half")
            die_if_due()
        real_save(tensors, file)

    def dying_commit(directory: Path) -> None:
        if directory.parent.name == "checkpoints":
            die_if_due()
        real_commit(directory)

    def dying_prune(directory: Path, step: int, keep: int) -> None:
        die_if_due()
        real_prune(directory, step, keep)

    if moment == "while writing":
        checkpoints.save_file = dying_save
    elif moment == "before renaming":
        atomic.commit_directory = dying_commit
    else:
        checkpoints._prune = dying_prune
    child_run(path, None)


class SkippingTask(ToyTask):
    """Batches of odd steps on odd processes have no use for the second layer."""

    may_skip_parameters = True

    def training_step(self, network: nn.Module, batch: dict[str, Tensor], step: int) -> StepOutput:
        output = network(batch["x"])
        if step % 2 and distributed.rank() % 2:
            return StepOutput({"main": self.network.first(batch["x"]).square().mean()})
        return StepOutput({"main": output.square().mean()})


class PartlyNetwork(ToyNetwork):
    """Its second layer is used where `all_of_it`."""

    def forward(self, x: Tensor, all_of_it: bool = True) -> Tensor:
        hidden = self.first(x).tanh()
        return self.second(hidden) if all_of_it else hidden


class PartlyTask(ToyTask):
    """Batches of odd steps on odd processes have no use for the second layer, which is none that FSDP gathers apart."""

    may_skip_parameters = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = PartlyNetwork(0.0)

    def training_step(self, network: nn.Module, batch: dict[str, Tensor], step: int) -> StepOutput:
        all_of_it = not (step % 2 and distributed.rank() % 2)
        return StepOutput({"main": network(batch["x"], all_of_it).square().mean()})


class DriftingTask(ToyTask):
    """Its buffer differs between processes."""

    def after_step(self, step: int) -> None:
        self.network.seen.fill_(step + distributed.rank())


def child_rank(rank: int, world: int, port: int, path: Path) -> None:
    """One of `world` processes, as torchrun would start it; leaves what happened in outcome_RANK.json."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )

    def run(name: str, config: TrainingConfig, task: Task) -> str:
        try:
            run_toy(path / name, config, task, ToyLoader(8, part=rank, parts=world))
        except (UserError, TrainingInterrupted, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return "done"

    mine = rank == world - 1
    divided = toy_config(parallel="fsdp2", optimizer=OptimizerConfig(learning_rate=0.01, weight_decay=0.1))
    outcome = {
        "joint": run("joint", plain_config(log_every=2), ToyTask(dropout=0.0)),
        "adversarial": run("adversarial", plain_config(accumulation=2), GanTask()),
        "adversarial later": run("adversarial later", plain_config(), GanTask(begin=4)),
        "whole": run("whole", toy_config(), ToyTask()),
        "stopped": run("stopped", toy_config(), StoppingTask(16, signal.SIGTERM) if mine else ToyTask()),
        "resumed": run("stopped", toy_config(), ToyTask()),
        "diverged": run("diverged", toy_config(), FailingTask(16, float("nan")) if mine else ToyTask()),
        "skipping": run("skipping", plain_config(), SkippingTask()),
        "drifting": run("drifting", toy_config(), DriftingTask()),
        "uneven": run("uneven", plain_config(accumulation=2), UnevenTask()),
        "divided joint": run(
            "divided joint", plain_config(log_every=2, parallel="fsdp2"), ToyTask(dropout=0.0)
        ),
        "divided clipped": run(
            "divided clipped",
            plain_config(log_every=2, parallel="fsdp2", gradient_clip=0.01, accumulation=2),
            ToyTask(dropout=0.0),
        ),
        "divided whole": run("divided whole", divided, ToyTask()),
        "whole adamw": run("whole adamw", dataclasses.replace(divided, parallel="ddp"), ToyTask()),
        "divided stopped": run(
            "divided stopped", divided, StoppingTask(16, signal.SIGUSR1) if mine else ToyTask()
        ),
        "divided resumed": run("divided stopped", divided, ToyTask()),
        "partly": run("partly", plain_config(accumulation=2), PartlyTask()),
        "divided partly": run("divided partly", plain_config(accumulation=2, parallel="fsdp2"), PartlyTask()),
        "divided diverged": run(
            "divided diverged", divided, FailingTask(16, float("nan")) if mine else ToyTask()
        ),
        "grown": run("grown", plain_config(parallel="fsdp2"), ToyTask(dropout=0.0)),
        "shrunk": run("shrunk", plain_config(parallel="fsdp2"), StoppingTask(4, signal.SIGTERM, dropout=0.0)),
        "first to fail": distributed.first_to_fail(),
    }
    distributed.barrier()  # rank 0 is the rendezvous
    (path / f"outcome_{rank}.json").write_text(json.dumps(outcome), encoding="utf-8")
    torch.distributed.destroy_process_group()


def wait_for_line(file: Path, child: BaseProcess) -> None:
    """Until the child has written to the file, or is through."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    deadline = time.monotonic() + PATIENCE
    while child.is_alive() and time.monotonic() < deadline:
        if file.exists() and file.stat().st_size and file.stat().st_mtime_ns != before:
            return
        time.sleep(0.002)
