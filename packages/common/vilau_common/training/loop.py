"""The one training loop, for every part, on Hugging Face Accelerate.

`TrainingState.advance` is a step; this file says what happens between steps, in this order: log line,
checkpoint, evaluation, samples. Everything that a step depends on is in the checkpoint, so a resumed run repeats
the uninterrupted one bit for bit (with as many processes, on the same kind of machine; any number goes on, with its
data begun anew). Evaluation comes after the checkpoint and has random numbers of its own, so it neither disturbs
training nor is lost by an interruption: a resumed run cuts metrics.jsonl back to the checkpoint and does again what
was due after it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vilau_common import atomic, distributed
from vilau_common.errors import UserError
from vilau_common.run import RunDirectory, git_state, isolated_random
from vilau_common.training import checkpoint as checkpoints
from vilau_common.training.config import TrainingConfig
from vilau_common.training.environment import torch_settings
from vilau_common.training.interrupt import StopSignals, TrainingInterrupted
from vilau_common.training.logging import MetricLogger, MetricsFile, WandbLogger, messages_to, no_messages
from vilau_common.training.optim import learning_rate_ratio
from vilau_common.training.progress import TrainingProgress
from vilau_common.training.state import TrainingDiverged, TrainingState
from vilau_common.training.task import Loader, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """How a training run ended."""

    step: int
    metrics: dict[str, float]  # the final evaluation
    seconds: float  # of training and evaluation, over all starts of the run
    already_finished: bool = False  # an earlier start had done it all


def train(
    task: Task, loader: Loader, config: TrainingConfig, run: RunDirectory, *, stage: str, seed: int = 0
) -> TrainingResult:
    """Train `task` to the end, from the newest good checkpoint in `run` if there is one; write run/model.

    stage: the name of this training in the log and on the progress bar.
    seed: of the random numbers that the training steps draw. Seed before building the task as well.

    Raises TrainingInterrupted on a signal to stop (with a checkpoint), TrainingDiverged when a number is not
    finite any more, UserError when the run directory is another run's or cannot be written.
    """
    if (record := run.finished()) is not None:
        if distributed.is_main():
            print(f"{stage}: finished already, {record['step']} steps; delete {run} to do it again")
        return TrainingResult(**record, already_finished=True)
    with ExitStack() as stack:
        if distributed.is_main():
            stack.enter_context(run.lock())
            run.checkpoints.mkdir(exist_ok=True)
            atomic.remove_leftovers(run.path)
            atomic.remove_leftovers(run.checkpoints)
            stack.enter_context(messages_to(run))
        else:
            stack.enter_context(no_messages())
        stack.enter_context(torch_settings(config))
        stop = stack.enter_context(StopSignals())
        state = stack.enter_context(contextlib.closing(TrainingState(task, loader, config, seed)))
        loop = stack.enter_context(contextlib.closing(TrainingLoop(state, run, stage, seed, stop)))
        loop.resume()
        try:
            return loop.run_to_end()
        except TrainingDiverged as error:
            raise loop.explained(error) from None


class TrainingLoop:
    """Logging, checkpoints, evaluation and the end of a run; made by `train`."""

    def __init__(
        self, state: TrainingState, run: RunDirectory, stage: str, seed: int, stop: StopSignals
    ) -> None:
        self.state, self.task, self.config = state, state.task, state.config
        self.run, self.stage, self.seed, self.stop = run, stage, seed, stop
        self.earlier_seconds = 0.0
        self.started = time.monotonic()
        self.metrics: MetricsFile | None = None
        self.loggers: list[MetricLogger] = []
        if distributed.is_main():
            self.metrics = MetricsFile(run, stage)
            self.loggers.append(self.metrics)
            if self.config.logger.wandb:
                self.loggers.append(WandbLogger(self.config.logger, run, stage, asdict(self.config)))
        self.progress = TrainingProgress(
            stage, self.config.steps, self.task.unit, visible=distributed.is_main()
        )

    def close(self) -> None:
        """Close the loggers."""
        for logger in self.loggers:
            logger.close()

    def run_to_end(self) -> TrainingResult:
        """Train from the present step to the last, then save the model."""
        state, config = self.state, self.config
        with self.progress:
            self.task.train_mode()
            metrics = self._work_between_steps() if state.step else {}
            while state.step < config.steps:
                units = state.advance()
                signal_number = distributed.maximum(self.stop.received)
                self.progress.advance(state.step, units * distributed.world_size(), state.window.shown_loss)
                if self._due(config.log_every):
                    self._log_window()
                if signal_number or self._due(config.checkpoint_every):
                    self._write_checkpoint()
                if signal_number:
                    interrupted = TrainingInterrupted(state.step, signal_number)
                    self.progress.say(str(interrupted))
                    raise interrupted
                metrics = self._work_between_steps()
            return self._finish(metrics)

    def resume(self) -> None:
        """Go to the newest good checkpoint; without one, begin at step 0 with an empty metrics.jsonl."""
        commit = git_state()
        log.info("%s: commit %s%s", self.stage, commit.commit, " with changes" if commit.dirty else "")
        path = self._newest_checkpoint()
        if path is None:
            if self.metrics is not None:
                self.metrics.truncate(0)
            return
        saved = checkpoints.read(path, self._check_resumable, mapped=self.state.sharded)
        self.state.restore(saved)
        self.earlier_seconds = saved.trainer["seconds"]
        if self.metrics is not None:
            self.metrics.truncate(saved.trainer["metrics_bytes"])
        told = f"going on from step {self.state.step} of {self.config.steps}"
        if saved.process is None:
            told += (
                f", processes: {distributed.world_size()} where there were {saved.trainer['processes']}; each "
                "reads its share of the data from the beginning, so that some samples come again early and others late"
            )
        self.progress.say(told)

    def explained(self, error: TrainingDiverged) -> TrainingDiverged:
        """The same error, with all that a user needs to know."""
        kept = self._newest_checkpoint()
        told = TrainingDiverged(
            f"{self.stage}: {error}; "
            f"{f'the last good checkpoint is {kept}' if kept is not None else 'there is no checkpoint yet'}; "
            "try a learning rate (training.optimizer.learning_rate) "
            f"below {self.config.optimizer.learning_rate:g} in another run directory"
        )
        log.info("%s", told)  # the entry point shows it
        return told

    def _newest_checkpoint(self) -> Path | None:
        return distributed.from_main(
            checkpoints.newest_good(self.run.checkpoints) if distributed.is_main() else None
        )

    def _check_resumable(self, path: Path, trainer: Mapping[str, Any]) -> None:
        if trainer["config"] != self.config.digest():
            raise UserError(
                f"checkpoint {path} was written with other training settings: a run goes on only with "
                "its own, so name another run directory or delete this one"
            )
        # Of the same number of processes a loader's position tells, too; another number has none that fits.
        sources = trainer.get("data_sources")
        if sources is not None and sources != self.state.data_sources:
            raise UserError(
                f"checkpoint {path} was written with other data ({sources}, now {self.state.data_sources}): a run goes "
                "on only with its own, so name another run directory or give its data"
            )
        # The same number of batches a step, so that learning rate and schedule still fit.
        processes, accumulation = trainer["processes"], trainer["accumulation"]
        batches, now = processes * accumulation, distributed.world_size()
        if batches != now * self.config.accumulation:
            needed = (
                f"{now} can go on from it with training.accumulation={batches // now}"
                if batches % now == 0
                else f"{now} cannot go on from it, but any number that divides {batches} can"
            )
            raise UserError(
                f"checkpoint {path} was written with {batches} batches a step ({processes} processes, "
                f"training.accumulation={accumulation}): {needed}"
            )

    def _due(self, every: int | None) -> bool:
        return self.config.due(every, self.state.step)

    def _write_checkpoint(self) -> None:
        with self._apart_from_training():
            contents = self.state.capture(
                {
                    "stage": self.stage,
                    "seconds": self._seconds(),
                    "metrics_bytes": self.metrics.sync() if self.metrics is not None else 0,
                }
            )
            path = checkpoints.write(
                self.run.checkpoints, self.state.step, contents, self.config.keep_checkpoints
            )
        log.info("wrote %s", path)

    def _log_window(self) -> None:
        ratio = learning_rate_ratio(self.state.step - 1, self.config.steps, self.config.schedule)
        self._write_metrics(
            {
                **self.state.window.take_averages(),
                "learning_rate": self.config.optimizer.learning_rate * ratio,
                "time/total_seconds": self._seconds(),
            }
        )

    def _write_metrics(self, values: Mapping[str, float]) -> None:
        for logger in self.loggers:
            logger.write(self.state.step, values)

    def _seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    def _work_between_steps(self) -> dict[str, float]:
        """Evaluate and write samples where they are due; return the evaluation's numbers."""
        metrics: dict[str, float] = {}
        if self._due(self.config.evaluate_every):
            with self._evaluation():
                start = time.monotonic()
                metrics = distributed.from_main(self.task.evaluate())
            if metrics:
                seconds = time.monotonic() - start
                self._write_metrics(
                    {
                        **{f"evaluate/{name}": value for name, value in metrics.items()},
                        "time/evaluate_seconds": seconds,
                    }
                )
                told = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
                log.info("step %d: %s (%.1f s)", self.state.step, told, seconds)
        if self._due(self.config.sample_every):
            if distributed.is_main() and not self.state.sharded:
                with self._evaluation():
                    directory = self.run.samples / f"step_{self.state.step:06d}"
                    directory.mkdir(parents=True, exist_ok=True)
                    self.task.save_samples(directory, self.state.step)
                    if not any(directory.iterdir()):
                        directory.rmdir()
            distributed.barrier()
        return metrics

    def _finish(self, metrics: dict[str, float]) -> TrainingResult:
        result = TrainingResult(self.state.step, metrics, self._seconds())
        with self._evaluation(), self.state.whole_weights():
            if distributed.is_main():
                with atomic.new_directory(self.run.model) as directory:
                    self.task.save_model(directory)
        if distributed.is_main():
            self.run.mark_finished({"step": result.step, "metrics": metrics, "seconds": result.seconds})
        distributed.barrier()
        self.progress.say(f"finished {result.step} steps in {result.seconds:.0f} s")
        return result

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Averaged weights, evaluation mode, no gradients, random numbers apart from training's."""
        with ExitStack() as stack:
            stack.enter_context(self._apart_from_training())
            stack.enter_context(isolated_random(self.seed, distributed.rank()))
            if self.state.average is not None:
                stack.enter_context(self.state.average.applied())
            stack.enter_context(torch.no_grad())
            self.task.network.eval()
            yield
            self.state.reshard()
            self.task.train_mode()

    @contextmanager
    def _apart_from_training(self) -> Iterator[None]:
        """Leave the time of the block out of the throughput."""
        with self.state.window.paused():
            yield
        self.progress.pause()
