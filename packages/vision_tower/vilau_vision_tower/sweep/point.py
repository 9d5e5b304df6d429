"""One point of a sweep: train a tower, evaluate it, and record the outcome, whatever it is.

The function here runs where the launcher puts it: in this process, in another one, or on another machine.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import traceback
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vilau_common.config import config_to_dict, typed_config
from vilau_common.errors import UserError
from vilau_common.run import RunDirectory
from vilau_common.training import TrainingInterrupted
from vilau_common.training.interrupt import hand_on
from vilau_vision_tower.evaluation.config import EvaluateTowerConfig
from vilau_vision_tower.evaluation.run import PREFIX, evaluate_tower
from vilau_vision_tower.sweep.config import SweepPointConfig
from vilau_vision_tower.sweep.record import FAILED, FINISHED, RUNNING, STOPPED, PointRecord, read_record
from vilau_vision_tower.train import train_tower

TRACE_FILE = "error.txt"
TEST = "test"


def run_point(composed: DictConfig) -> None:
    """Hydra's task function: the point that `composed` describes, in its own run directory below the sweep's.

    A finished point is left alone, a stopped or killed one goes on, a failed one starts again. An error is recorded and
    told, not raised, so that other points go on; unless the point had finished before with other settings: its numbers
    are not given up for that. SystemExit: a scheduler's signal stops the sweep.
    """
    hydra = HydraConfig.get()
    directory = Path(hydra.sweep.dir) / hydra.sweep.subdir
    overrides = list(hydra.overrides.task)
    before = read_record(directory)
    had_finished = before is not None and before.status == FINISHED
    record = PointRecord(RUNNING, overrides)
    try:
        point = typed_config(composed, SweepPointConfig)
        record.config = config_to_dict(point)
        if before is not None and had_finished and before.config == record.config:
            _say(directory, "finished before")
            return
        if not had_finished:
            record.write(directory)
        _say(directory, "starts" if before is None else "goes on")
        record.numbers = measured(point, directory)
    except TrainingInterrupted as stopped:
        dataclasses.replace(record, status=STOPPED).write(directory)
        _say(directory, str(stopped))
        hand_on(stopped)
        # No Exception: Hydra would go on with the next point.
        raise SystemExit(stopped.exit_status) from None
    except Exception as error:
        if had_finished:
            raise
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        dataclasses.replace(record, status=FAILED, error=told).write(directory)
        (directory / TRACE_FILE).write_text(traceback.format_exc(), encoding="utf-8")
        _say(directory, f"failed: {told}")
        return
    dataclasses.replace(record, status=FINISHED).write(directory)


def measured(point: SweepPointConfig, directory: Path) -> dict[str, float]:
    """Train and evaluate; the evaluation's numbers without their prefix, and the training's time."""
    result = train_tower(point.training_config(str(directory)))
    numbers = evaluate_tower(
        EvaluateTowerConfig(
            **vars(point.evaluation),
            tower_directory=str(directory),
            data=str(Path(point.data.directory) / TEST),
            directory=str(directory / "evaluation"),
        )
    )
    return {
        **{name.removeprefix(PREFIX): value for name, value in numbers.items()},
        "step_seconds": step_seconds(RunDirectory(directory).metrics),
        "train_seconds": result.seconds,
    }


def step_seconds(metrics: Path) -> float:
    """The median time of a training step in a metrics.jsonl."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return statistics.median(line["time/step_seconds"] for line in lines if "time/step_seconds" in line)


def _say(directory: Path, sentence: str) -> None:
    print(f"sweep: {directory.name}: {sentence}", file=sys.stderr, flush=True)
