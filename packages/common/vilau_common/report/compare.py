"""Runs side by side: `compare_runs(runs)` writes a page with the same prompts and seeds, one row a prompt; every number
with its difference from the first run's; the settings that differ; and the trainings' curves laid over each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vilau_common import atomic
from vilau_common.errors import UserError
from vilau_common.report.build import machine_facts
from vilau_common.report.comparable import ComparedRun, read_runs, side_by_side
from vilau_common.report.curves import Chart, compared_charts
from vilau_common.report.examples import Answer, Caption, Drawing, Reconstruction
from vilau_common.report.numbers import difference, exact, is_better, shown
from vilau_common.report.pictures import InlinePicture, inline_picture
from vilau_common.report.sections import DRAWN_OBJECTS, HELD_OUT, QUESTIONS
from vilau_common.report.template import rendered
from vilau_common.report.words import KINDS, MEASURES, STAGES, Measure

COMPARISON = "comparison"  # in the first run
ABSENT = "–"

Judged = TypeVar("Judged", Reconstruction, Answer, Caption)


@dataclass(frozen=True)
class Cell:
    """A run's number. difference: from the first run's; better: None where that is not known."""

    value: str
    difference: str = ""
    better: bool | None = None


@dataclass(frozen=True)
class NumberRow:
    """One number of every run."""

    label: str
    explanation: str
    cells: list[Cell]


@dataclass(frozen=True)
class SettingRow:
    """A setting that differs."""

    name: str
    values: list[str]


@dataclass(frozen=True)
class ExampleRow:
    """The same example of every run. examples: None for a run that has none of the sort."""

    title: str
    picture: InlinePicture | None  # that is asked about, described or reconstructed
    examples: Sequence[tuple[InlinePicture | None, Reconstruction | Drawing | Answer | Caption] | None]
    right: list[bool]  # of the runs that have it


@dataclass(frozen=True)
class ExampleTable:
    """Examples of a sort, or of a kind of it."""

    title: str
    explanation: str
    verdict: str
    rows: list[ExampleRow]


def compare_runs(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Write index.html, which needs no other file, and table.md, the numbers alone, into `output` (None: comparison/ in
    the first run, to which the others are compared). Returns the path of index.html.

    Raises UserError for fewer than two runs, and for runs that were not evaluated alike (see `comparable`).
    """
    if len(runs) < 2:
        raise UserError("a comparison is of two or more runs")
    directory = runs[0] / COMPARISON if output is None else output
    if directory.exists() and not (directory / "table.md").is_file():
        raise UserError(f"{directory} is there already and holds no comparison; name another directory")
    compared = read_runs(runs)
    page = render(compared)
    with atomic.new_directory(directory) as temporary:
        (temporary / "index.html").write_text(page, encoding="utf-8")
        (temporary / "table.md").write_text(markdown(compared), encoding="utf-8")
    return directory / "index.html"


def render(runs: Sequence[ComparedRun]) -> str:
    """The page's HTML."""
    drawings = side_by_side([run.examples.drawings for run in runs])
    values = {
        "runs": [(run.name, machine_facts(run.inputs.machine)) for run in runs],
        "measures": measure_rows(runs),
        "kinds": [
            (title, rows)
            for title, key in (
                ("Drawings, by kind of prompt", DRAWN_OBJECTS),
                ("Questions, by kind", QUESTIONS),
            )
            if (rows := kind_rows(runs, key))
        ],
        "settings": setting_rows(runs),
        "drawings": [
            table
            for held_out in (False, True)
            for table in drawing_tables(
                [row for row in drawings if any(it is not None and it.held_out is held_out for it in row)],
                held_out,
            )
        ],
        "reconstructions": _reconstructions(runs),
        "answers": _answers(runs),
        "captions": _captions(runs),
        "trainings": trainings(runs),
        "everything": number_rows(runs, _keys(runs), lambda key: Measure(key, ""), exactly=True),
    }
    return rendered("compare.html.jinja", values)


# --- numbers and settings ----------------------------------------------------------------------------------------


def measure_rows(runs: Sequence[ComparedRun]) -> list[NumberRow]:
    """The numbers that the page can explain, each with that of held-out combinations below it."""
    known = set(_keys(runs))
    keys = [key for name in MEASURES for key in (name, HELD_OUT + name) if key in known]

    def measure(key: str) -> Measure:
        if not key.startswith(HELD_OUT):
            return MEASURES[key]
        return Measure(f"{MEASURES[key.removeprefix(HELD_OUT)].label}, held out", "")

    return number_rows(runs, keys, measure)


def kind_rows(runs: Sequence[ComparedRun], key: str) -> list[NumberRow]:
    """The numbers `key`/<kind>, then those of held-out combinations."""
    found = []
    for prefix, suffix in (("", ""), (HELD_OUT, ", held out")):
        start = f"{prefix}{key}/"

        def measure(name: str, start: str = start, suffix: str = suffix) -> Measure:
            kind = name.removeprefix(start)
            return Measure(kind.replace("_", " ") + suffix, "" if suffix else KINDS.get(kind, ""))

        found += number_rows(runs, [name for name in _keys(runs) if name.startswith(start)], measure)
    return found


def number_rows(
    runs: Sequence[ComparedRun],
    keys: Iterable[str],
    measure: Callable[[str], Measure],
    exactly: bool = False,
) -> list[NumberRow]:
    """A row for each key. exactly: as the numbers stand in results.json."""
    rows = []
    for key in keys:
        told = measure(key)
        reference = runs[0].inputs.results.get(key)
        cells = []
        for run in runs:
            value = run.inputs.results.get(key)
            if value is None:
                cells.append(Cell(ABSENT))
                continue
            text = exact(value) if exactly else shown(key, value)
            if run is runs[0] or reference is None:
                cells.append(Cell(text))
            else:
                cells.append(Cell(text, difference(key, value, reference), is_better(key, value, reference)))
        rows.append(NumberRow(told.label, told.explanation, cells))
    return rows


def setting_rows(runs: Sequence[ComparedRun]) -> list[SettingRow]:
    """The settings that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    rows = []
    for key in keys:
        values = [json.dumps(run.settings[key]) if key in run.settings else ABSENT for run in runs]
        if len(set(values)) > 1:
            rows.append(SettingRow(key, values))
    return rows


def markdown(runs: Sequence[ComparedRun]) -> str:
    """Every number and its difference, for a README or an issue."""
    names = [run.name.replace("|", "\\|") for run in runs]
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(runs) + 1) + "|"]
    for key, row in zip(
        _keys(runs), number_rows(runs, _keys(runs), lambda key: Measure(key, "")), strict=True
    ):
        cells = [cell.value + (f" ({cell.difference})" if cell.difference else "") for cell in row.cells]
        lines.append(f"| `{key}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _keys(runs: Sequence[ComparedRun]) -> list[str]:
    """The keys of results.json that any run has, in the order of the first that has them."""
    return list(dict.fromkeys(key for run in runs for key in run.inputs.results))


# --- examples and curves -----------------------------------------------------------------------------------------


def drawing_tables(rows: Sequence[Sequence[Drawing | None]], held_out: bool) -> list[ExampleTable]:
    """A table for each kind of prompt."""
    kinds: dict[str, list[ExampleRow]] = {}
    for row in rows:
        first = next(drawing for drawing in row if drawing is not None)
        examples = [None if it is None else (inline_picture(it.picture), it) for it in row]
        right = [it.picture_right for it in row if it is not None]
        kinds.setdefault(first.kind, []).append(ExampleRow(first.prompt, None, examples, right))
    suffix = ", held out" if held_out else ""
    return [
        ExampleTable(kind.replace("_", " ") + suffix, KINDS.get(kind, ""), verdict(found), found)
        for kind, found in kinds.items()
    ]


def verdict(rows: Sequence[ExampleRow]) -> str:
    """How many of the shown are right in every run, in some, in none."""
    every = sum(all(row.right) for row in rows)
    none = sum(not any(row.right) for row in rows)
    return f"of {len(rows)} shown: {every} right in every run, {len(rows) - every - none} in some, {none} in none"


def _reconstructions(runs: Sequence[ComparedRun]) -> ExampleTable | None:
    rows = side_by_side([run.examples.reconstructions for run in runs])
    return _table(rows, lambda it: (it.caption, it.original), lambda it: it.reconstruction)


def _answers(runs: Sequence[ComparedRun]) -> ExampleTable | None:
    rows = side_by_side([run.examples.answers for run in runs])
    return _table(rows, lambda it: (it.question, it.picture))


def _captions(runs: Sequence[ComparedRun]) -> ExampleTable | None:
    rows = side_by_side([run.examples.captions for run in runs])
    return _table(rows, lambda it: (it.expected, it.picture))


def _table(
    rows: Sequence[Sequence[Judged | None]],
    given: Callable[[Judged], tuple[str, Path]],
    made: Callable[[Judged], Path] | None = None,
) -> ExampleTable | None:
    """given: an example's title and the picture it is about; made: the picture that the model made, if it did."""
    found = []
    for row in rows:
        title, about = given(next(example for example in row if example is not None))
        examples = [
            None if it is None else (None if made is None else inline_picture(made(it)), it) for it in row
        ]
        right = [bool(it.right) for it in row if it is not None]
        found.append(ExampleRow(title, inline_picture(about), examples, right))
    return ExampleTable("", "", verdict(found), found) if found else None


def trainings(runs: Sequence[ComparedRun]) -> list[tuple[Measure, list[Chart]]]:
    """The charts of each stage that two runs or more have trained."""
    found = []
    for stage, measure in STAGES.items():
        # A run without the stage has no line, but its colour.
        series = {run.name: run.inputs.metrics.get(stage, {}) for run in runs}
        if sum(map(bool, series.values())) > 1:
            found.append((measure, compared_charts(series)))
    return found
