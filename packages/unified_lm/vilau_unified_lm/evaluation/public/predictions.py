"""predictions.jsonl: a line for each sample, written as soon as its batch is done, so that a stopped run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vilau_common import atomic

Record = dict[str, Any]


class Predictions:
    """The records so far by their "id". A line torn by a kill is dropped."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.done: dict[str, Record] = {}
        if not file.exists():
            return
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with file.open("r+b") as torn:
                torn.truncate(whole)
        for line in content[:whole].splitlines():  # bytes know no other line ends than these
            record = json.loads(line)
            self.done[record["id"]] = record

    def add(self, records: Iterable[Record]) -> None:
        """Append a batch's, and see it written."""
        records = list(records)
        with self.file.open("a", encoding="utf-8") as file:
            file.writelines(_line(record) for record in records)
            file.flush()
            os.fsync(file.fileno())
        self.done |= {record["id"]: record for record in records}

    def finish(self, order: Iterable[str], judged: Mapping[str, Record]) -> None:
        """Write the file anew: records in this order, each with what was found out of it; others stay behind them."""
        known = {id_: {**self.done[id_], **judged.get(id_, {})} for id_ in order}
        rest = {id_: record for id_, record in self.done.items() if id_ not in known}
        atomic.write_text(self.file, "".join(_line(record) for record in [*known.values(), *rest.values()]))


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
