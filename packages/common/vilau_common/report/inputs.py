"""What a report is made from, read from a demo's run directory and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilau_common.errors import UserError
from vilau_common.report.examples import Examples, parse_examples
from vilau_common.report.words import STAGES

Series = dict[str, list[tuple[int, float]]]
"""Metric name -> (step, value) in the order of the steps; values that were no finite number are NaN."""


@dataclass(frozen=True)
class Inputs:
    """A demo run's numbers and examples; what a run lacks is None or left out."""

    name: str  # of the run directory
    results: dict[str, float]
    examples: Examples | None
    metrics: dict[str, Series]  # stage -> its training
    machine: dict[str, str | float]

    @property
    def experiment(self) -> str | None:
        """The experiment that was run, where machine.json tells."""
        experiment = self.machine.get("experiment")
        return None if experiment is None else str(experiment)


def read_inputs(run: Path) -> Inputs:
    """Read a run directory. Raises UserError if it has no results.json, or a file of it cannot be understood."""
    evaluation, machine = run / "evaluation", run / "machine.json"
    listed = evaluation / "examples.json"
    lines = {stage: run / stage / "metrics.jsonl" for stage in STAGES}
    return Inputs(
        name=run.resolve().name,
        results=_results(run / "results.json"),
        examples=parse_examples(_json(listed), evaluation) if listed.is_file() else None,
        metrics={stage: read_series(path) for stage, path in lines.items() if path.is_file()},
        machine=_machine(machine) if machine.is_file() else {},
    )


def read_series(path: Path) -> Series:
    """The numbers of a metrics.jsonl. A last line without its end, which a killed process leaves, is passed over."""
    series: Series = {}
    *lines, _ = _text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
            del values["stage"]
            for name, value in values.items():
                series.setdefault(name, []).append((step, math.nan if value is None else float(value)))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{path}: line {number} is no line of metrics that a training wrote") from None
    return series


def _results(path: Path) -> dict[str, float]:
    if not path.is_file():
        raise UserError(f"there is no {path}, which a report is made from: evaluate the run first")
    results = _object(path)
    for key, value in results.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(
                f"{path}: {key!r} must be a number, not {json.dumps(value)}: evaluate the run again"
            )
    return dict(results)


def _machine(path: Path) -> dict[str, str | float]:
    facts = _object(path)
    for key, value in facts.items():
        if value is not None and not isinstance(value, str | int | float):
            raise UserError(f"{path}: {key!r} must be a text or a number, not {json.dumps(value)}")
    return {key: value for key, value in facts.items() if value is not None}


def _object(path: Path) -> Mapping[str, Any]:
    contents = _json(path)
    if not isinstance(contents, dict):
        raise UserError(f"{path} must hold one JSON object")
    return contents


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
