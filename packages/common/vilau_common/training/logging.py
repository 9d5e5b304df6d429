"""Where a run's numbers and messages go: metrics.jsonl, log.txt, and Weights & Biases where asked for."""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlparse

from vilau_common.errors import UserError
from vilau_common.run import RunDirectory
from vilau_common.training.config import LoggerConfig

log = logging.getLogger(__name__)

WANDB_ID_FILE = "wandb_id.txt"
WANDB_SERVER = "https://api.wandb.ai"


class MetricLogger(Protocol):
    """Something that takes the numbers of a step."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """metrics.jsonl: one JSON object a line, {"step", "stage", name: number, ...}; NaN is written as null."""

    def __init__(self, run: RunDirectory, stage: str) -> None:
        self._file = run.metrics.open("a+b")
        self._stage = stage

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "stage": self._stage, **finite}).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Bring all lines to disk; return the file's size in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def truncate(self, size: int) -> None:
        """Forget the lines after the first `size` bytes: the steps that they tell of will be done again."""
        if self._file.seek(0, os.SEEK_END) < size:
            log.warning("metrics.jsonl has lost lines since the checkpoint was written")
        else:
            self._file.truncate(size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WandbLogger:
    """The same numbers for Weights & Biases; a resumed run goes on in the same one there."""

    def __init__(
        self, config: LoggerConfig, run: RunDirectory, stage: str, settings: Mapping[str, Any]
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                "training.logger.wandb=true needs the package wandb: install it "
                "(pip install wandb) or set training.logger.wandb=false"
            ) from None
        id_file = run.path / WANDB_ID_FILE
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex, encoding="utf-8")
        offline = "WANDB_MODE" not in os.environ and not _has_wandb_key()
        self._run = wandb.init(
            project=config.project,
            name=config.name or run.path.name,
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            group=stage,
            dir=run.path,
            config=dict(settings),
            mode="offline" if offline else None,
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def _has_wandb_key() -> bool:
    if "WANDB_API_KEY" in os.environ:
        return True
    server = urlparse(os.environ.get("WANDB_BASE_URL", WANDB_SERVER)).hostname or ""
    try:
        return netrc.netrc().authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False


@contextmanager
def no_messages() -> Iterator[None]:
    """Inside the block Python's log messages below ERROR are dropped: rank 0 tells, for all processes."""
    root = logging.getLogger()
    handler = logging.StreamHandler()
    handler.setLevel(logging.ERROR)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


@contextmanager
def messages_to(run: RunDirectory) -> Iterator[None]:
    """Inside the block Python's log messages go to log.txt, from INFO up, and to stderr, from WARNING up."""
    root = logging.getLogger()
    level = root.level
    file = logging.FileHandler(run.log, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    file.setLevel(logging.INFO)
    handlers: list[logging.Handler] = [file]
    if not root.handlers:  # else whoever configured logging decides what is shown
        screen = logging.StreamHandler()
        screen.setLevel(logging.WARNING)
        handlers.append(screen)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
