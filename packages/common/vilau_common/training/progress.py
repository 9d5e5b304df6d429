"""What a person sees while a run trains: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import logging
import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

LINE_SECONDS = 10.0
# A redraw takes a few milliseconds of the interpreter, which training needs.
REDRAWS_PER_SECOND = 2
# The speed is taken over so many of the last steps.
SPEED_STEPS = 100


class TrainingProgress:
    """Stage, step, loss, speed and time left. `visible` is False on all processes but the first."""

    def __init__(
        self, stage: str, steps: int, unit: str, visible: bool, console: Console | None = None
    ) -> None:
        self._stage, self._steps, self._unit, self._visible = stage, steps, unit, visible
        self._console = console or Console()
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=SPEED_STEPS + 1)
        self._loss = ""
        self._bar: Progress | None = None
        self._bar_task = TaskID(0)
        self._next_line = 0.0

    def __enter__(self) -> TrainingProgress:
        if self._visible and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
                refresh_per_second=REDRAWS_PER_SECOND,
            )
            self._bar_task = self._bar.add_task(self._stage, total=self._steps, loss="", speed="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, message: str) -> None:
        """Show a line above the bar, and put it into the log."""
        log.info(message)
        if self._visible:
            self._console.print(f"{self._stage}: {message}", markup=False, highlight=False, soft_wrap=True)

    def pause(self) -> None:
        """Forget the speed: what follows (evaluation, a checkpoint) is no training."""
        self._recent.clear()

    def advance(self, step: int, units: int, loss: float | None) -> None:
        """Show that `step` steps are done. units: what the last one took in; loss: None if not known."""
        if not self._visible:
            return
        now = time.monotonic()
        self._recent.append((now, units, step))
        if loss is not None:
            self._loss = f"loss {loss:.4g}"
        if self._bar is not None:
            self._bar.update(self._bar_task, completed=step, loss=self._loss, speed=self._speed())
        elif step == self._steps or (now >= self._next_line and len(self._recent) > 1):
            self._next_line = now + LINE_SECONDS
            parts = [f"{self._stage} {step}/{self._steps}", self._loss, self._speed(), self._left(step)]
            line = "  ".join(part for part in parts if part)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _speed(self) -> str:
        seconds = self._recent[-1][0] - self._recent[0][0]
        if seconds <= 0:
            return ""
        units = sum(units for _, units, _ in list(self._recent)[1:])
        if units:
            return f"{units / seconds:,.0f} {self._unit}/s"
        return f"{(len(self._recent) - 1) / seconds:.3g} steps/s"

    def _left(self, step: int) -> str:
        seconds = self._recent[-1][0] - self._recent[0][0]
        if len(self._recent) < 2 or step == self._steps:
            return ""
        left = round(seconds / (step - self._recent[0][2]) * (self._steps - step))
        return f"{left // 60}:{left % 60:02d} left"
