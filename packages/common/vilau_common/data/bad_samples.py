"""Bad samples: counted where they occur, reported along with batches, judged in the main process.

A worker puts what it met since its last batch into the batch's report. So the main process counts exactly
what lies before the batches that it has taken, the counts belong to the loader's state, and a resumed run
ends with the numbers of an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from vilau_common.errors import UserError

logger = logging.getLogger(__name__)

# A share means nothing before this many samples were seen.
MIN_SAMPLES_JUDGED = 200
# A worker that meets this many bad samples in a row gives up, as no batch would ever carry its report.
MAX_BAD_IN_A_ROW = 1000
# Further warnings go to the file only.
MAX_WARNINGS = 10


@dataclasses.dataclass(frozen=True)
class BadSampleRecord:
    """One bad sample."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"sample '{self.key}' in {self.shard}: {self.reason}"


@dataclasses.dataclass
class SampleReport:
    """What a worker met since its last batch."""

    seen: int = 0  # samples, the bad ones included
    bad: list[BadSampleRecord] = dataclasses.field(default_factory=list)


class BadSampleLedger:
    """Keeps the counts and the log in the main process, and stops the run above a share.

    `log_file`, if given, gets one JSON object a line for each bad sample.
    """

    def __init__(self, max_share: float, log_file: Path | None) -> None:
        self.seen = 0
        self.bad = 0
        self._max_share = max_share
        self._log_file = log_file

    def add(self, report: SampleReport) -> None:
        """Count and log a report. Raises UserError where too large a share of all samples is bad."""
        self.seen += report.seen
        if not report.bad:
            return
        for record in report.bad:
            self.bad += 1
            if self.bad <= MAX_WARNINGS:
                last = " (further ones are only counted and listed)" if self.bad == MAX_WARNINGS else ""
                logger.warning("skipped %s%s", record, last)
        if self._log_file is not None:
            self._log_file.parent.mkdir(parents=True, exist_ok=True)
            with self._log_file.open("a") as file:
                file.writelines(json.dumps(dataclasses.asdict(record)) + "\n" for record in report.bad)
        if self.seen >= MIN_SAMPLES_JUDGED and self.bad > self._max_share * self.seen:
            listed = f"; all are listed in {self._log_file}" if self._log_file is not None else ""
            raise UserError(
                f"{self.bad:,} of {self.seen:,} samples seen are bad ({self.bad / self.seen:.1%}, "
                f"max_bad_share allows {self._max_share:.1%}), such as {report.bad[0]}{listed}; "
                "repair the data or allow a larger share"
            )

    def state_dict(self) -> dict[str, Any]:
        """The counts, as ints."""
        return {"seen": self.seen, "bad": self.bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the counts, and drop from the log file what was met after they were saved."""
        self.seen, self.bad = int(state["seen"]), int(state["bad"])
        if self._log_file is not None and self._log_file.exists():
            lines = self._log_file.read_text().splitlines(keepends=True)
            self._log_file.write_text("".join(lines[: self.bad]))
