"""What is known of a point of a sweep: its point.json, written when it starts and when it ends."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vilau_common import atomic
from vilau_common.errors import UserError

POINT_FILE = "point.json"

FINISHED, FAILED, STOPPED, RUNNING = "finished", "failed", "stopped", "running"
"""`running` of a point that nobody works on any more: it was killed. The next start of the sweep goes on with it."""


@dataclass
class PointRecord:
    """config: all settings, by which a point is known again. numbers: of a finished one. error: of a failed one."""

    status: str
    overrides: list[str]
    config: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    error: str = ""

    def write(self, directory: Path) -> None:
        """Put it into the point's run directory."""
        directory.mkdir(parents=True, exist_ok=True)
        atomic.write_text(directory / POINT_FILE, json.dumps(asdict(self), indent=1) + "\n")


def read_record(directory: Path) -> PointRecord | None:
    """The record of a point's run directory; None where it never started. UserError: it cannot be read."""
    path = directory / POINT_FILE
    if not path.is_file():
        return None
    try:
        return PointRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no record of a sweep's point ({error}): delete it") from None
