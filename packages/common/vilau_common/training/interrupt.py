"""Stopping in good order: what a scheduler's signal does to a training run."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# A shell's exit status for a process that a signal ended.
SIGNAL_EXIT_BASE = 128


class TrainingInterrupted(Exception):
    """Training stopped on a signal, with a checkpoint written: the same command goes on from there."""

    def __init__(self, step: int, number: int) -> None:
        self.step = step
        self.signal = signal.Signals(number)
        self.exit_status = SIGNAL_EXIT_BASE + number
        super().__init__(f"stopped at step {step} by {self.signal.name}; run the same command to go on")


def hand_on(interrupted: TrainingInterrupted) -> None:
    """Give the signal, now that a checkpoint is written, to whoever handled it before: submitit requeues its job."""
    if callable(signal.getsignal(interrupted.signal)):
        signal.raise_signal(interrupted.signal)


class StopSignals:
    """Inside the block signals to stop are only noted, in `received` (0: none); afterwards all is as was.

    They are SIGTERM, SIGUSR1, and SIGUSR2, which submitit has SLURM send before a job's time is over. Python lets
    only the main thread handle signals; elsewhere the block changes nothing.
    """

    WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
