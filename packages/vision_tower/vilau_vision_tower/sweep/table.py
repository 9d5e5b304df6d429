"""sweep.csv: a line for each point that a sweep directory holds, whatever became of it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from vilau_common import atomic
from vilau_common.errors import UserError
from vilau_vision_tower.sweep.record import FINISHED, POINT_FILE, PointRecord, read_record

TABLE = "sweep.csv"
FACTS = ("point", "status", "overrides", "error")


def write_table(directory: Path) -> Path | None:
    """Write <directory>/sweep.csv from the records of all points; finished ones first, by rate. None: no points.

    Numbers that a point lacks are empty.
    """
    records = read_records(directory)
    if not records:
        return None
    columns = list(dict.fromkeys(name for record in records.values() for name in record.numbers))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*FACTS, *columns], lineterminator="\n")
    writer.writeheader()
    for name in sorted(records, key=lambda name: _order(name, records[name])):
        record = records[name]
        facts = {"point": name, "status": record.status, "overrides": " ".join(record.overrides)}
        writer.writerow({**facts, "error": record.error, **record.numbers})
    atomic.write_text(directory / TABLE, text.getvalue())
    return directory / TABLE


def read_records(directory: Path) -> dict[str, PointRecord]:
    """The records of all points in a sweep's directory, by their names."""
    found = {path.parent.name: read_record(path.parent) for path in directory.glob(f"*/{POINT_FILE}")}
    return {name: record for name, record in found.items() if record is not None}


def check_finished(directory: Path) -> None:
    """Raises UserError unless every point of a sweep's directory is finished."""
    records = read_records(directory)
    left = {name: record for name, record in sorted(records.items()) if record.status != FINISHED}
    if left:
        told = [
            f"{name} {record.status}" + f" ({record.error})" * bool(record.error)
            for name, record in left.items()
        ]
        raise UserError(
            f"sweep: {len(left)} of {len(records)} points in {directory} are not finished: {'; '.join(told)}; the same "
            "command tries them again"
        )


def _order(name: str, record: PointRecord) -> tuple[bool, float, float, str]:
    numbers = record.numbers
    return (
        record.status != FINISHED,
        numbers.get("bits_per_position", 0.0),
        numbers.get("codebook_size", 0.0),
        name,
    )
