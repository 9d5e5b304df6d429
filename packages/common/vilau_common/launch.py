"""Work that a Hydra launcher runs: a sweep's points, or one training as a job on a SLURM cluster (submitit).

    vilau train-lm … hydra/launcher=slurm hydra.launcher.partition=gpu hydra.launcher.nodes=2 \\
        hydra.launcher.gpus_per_node=8 hydra.launcher.tasks_per_node=8

A job that SLURM is about to stop, because its time is over or another needs its place, gets a signal: training writes a
checkpoint, submitit puts the job into the queue again, and there it goes on.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.initialize import initialize_config_dir
from omegaconf import DictConfig

from vilau_common.config import (
    HYDRA_VERSION_BASE,
    SchemaGroups,
    conf_directory,
    explained,
    registered,
    typed_config,
)
from vilau_common.errors import UserError
from vilau_common.training.interrupt import TrainingInterrupted, hand_on

# One job in the run's own directory, and no files of Hydra's own.
ONE_JOB = (
    "hydra.sweep.dir=${directory}",
    "hydra.sweep.subdir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)


@dataclass(frozen=True)
class Training:
    """A training by names, so that another process can do it: conf/<config>.yaml for `module`.`function`."""

    config: str
    module: str
    schema: str
    function: str

    def __call__(self, composed: DictConfig) -> None:
        """Hydra's task function. SystemExit: a signal stopped the training, and nobody put it into a queue again."""
        module = importlib.import_module(self.module)
        join_processes()
        try:
            getattr(module, self.function)(typed_config(composed, getattr(module, self.schema)))
        except TrainingInterrupted as stopped:
            hand_on(stopped)
            raise SystemExit(stopped.exit_status) from None

    def launch(self, overrides: Sequence[str], config_directory: Path | None = None) -> None:
        """Have it done by the launcher that the overrides name, and wait for its end. UserError: it failed."""
        module = importlib.import_module(self.module)
        multirun(
            self.config,
            getattr(module, self.schema),
            getattr(module, "SCHEMA_GROUPS", None),
            self,
            [*overrides, *ONE_JOB],
            conf_directory(config_directory),
        )


def multirun(
    config: str,
    schema: type,
    groups: SchemaGroups | None,
    function: Callable[[DictConfig], Any],
    overrides: Sequence[str],
    place: Path,
) -> None:
    """A Hydra multirun of conf/<config>.yaml in `place`, with any sweeper and launcher; waits for all jobs.

    UserError: a mistake in the overrides, a launcher that cannot work here, a job that failed.
    """
    from submitit.core.utils import UncompletedJobError

    with (
        registered(config, schema, groups),
        initialize_config_dir(str(place), job_name=config, version_base=HYDRA_VERSION_BASE),
    ):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None  # the block above made it
        try:
            hydra.multirun(config_name=config, task_function=function, overrides=list(overrides))
        except HydraException as error:
            raise UserError(explained(error, config, place, overrides)) from error
        except UncompletedJobError as error:
            raise UserError(f"a job did not come to its end: {str(error).strip().splitlines()[0]}") from error
        except RuntimeError as error:
            if "slurm" not in str(error):
                raise
            raise UserError(
                "hydra/launcher=slurm needs SLURM, whose commands (srun, sbatch) are not on this machine"
            ) from error


def join_processes() -> None:
    """In a submitit job of several tasks: the environment by which they find each other, as torchrun sets it."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        # All of a node's devices stay visible: a process takes its own by its local rank.
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
