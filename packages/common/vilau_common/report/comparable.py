"""Which runs can be laid side by side, and which of their examples belong together.

Two runs can be compared that were evaluated alike: with the same settings, on the same pictures, questions and prompts.
Then drawing i of each is the same prompt with the same seed. How pictures were sampled may differ: that is a part of
what is compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import yaml
from PIL import Image

from vilau_common.errors import UserError
from vilau_common.report.examples import Answer, Caption, Drawing, Examples, Reconstruction
from vilau_common.report.inputs import Inputs, read_inputs
from vilau_common.report.words import STAGES
from vilau_common.settings import flat

EVALUATION = "evaluation"
CONFIG = "config.yaml"
# Of an evaluation's settings: where things are, how many examples are kept to look at, and how pictures were sampled.
MAY_DIFFER = ("directory", "data", "examples", "sampling")
TIME = "time/"

Entry = TypeVar("Entry", Reconstruction, Drawing, Answer, Caption)


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs. name: as short as tells it from the others."""

    name: str
    path: Path
    inputs: Inputs
    settings: dict[str, Any]  # "lm: training.steps" -> value

    @property
    def examples(self) -> Examples:
        return self.inputs.examples or Examples([], [], [], [])


def read_runs(paths: Sequence[Path]) -> list[ComparedRun]:
    """Read the runs to compare. Raises UserError for two that cannot be compared with each other, and says why."""
    names = _names(paths)
    runs = [
        ComparedRun(name, path, read_inputs(path), _settings(path))
        for name, path in zip(names, paths, strict=True)
    ]
    for run in runs:
        if not (run.path / EVALUATION / CONFIG).is_file():
            raise UserError(
                f"{run.path} cannot be compared: it has no {EVALUATION}/{CONFIG} that says how it was evaluated; "
                "evaluate it again"
            )
    for first, other in combinations(runs, 2):
        if reason := _difference(first, other):
            raise UserError(f"{first.path} and {other.path} cannot be compared: {reason}")
    return runs


def side_by_side(lists: Sequence[Sequence[Entry]]) -> list[list[Entry | None]]:
    """A row for each example that the runs have in common, a column for each run: None where it keeps none of the sort.

    Runs may keep different numbers of examples: each keeps the first ones of each kind.
    """
    kept = [_by_kind(examples) for examples in lists]
    common = [kinds for kinds in kept if kinds]
    rows: list[list[Entry | None]] = []
    for kind in common[0] if len(common) > 1 else ():
        count = min(len(kinds.get(kind, ())) for kinds in common)
        rows += [[kinds[kind][index] if kinds else None for kinds in kept] for index in range(count)]
    return rows


def _by_kind(examples: Sequence[Entry]) -> dict[object, list[Entry]]:
    kinds: dict[object, list[Entry]] = {}
    for example in examples:
        key = (getattr(example, "held_out", False), getattr(example, "kind", ""))
        kinds.setdefault(key, []).append(example)
    return kinds


# --- what makes runs comparable ----------------------------------------------------------------------------------


def _difference(first: ComparedRun, other: ComparedRun) -> str | None:
    """Why two runs cannot be compared; None where they can."""
    for key in sorted(first.settings.keys() & other.settings.keys()):
        stage, _, name = key.partition(": ")
        if stage == EVALUATION and name.split(".")[0] not in MAY_DIFFER:
            values = [json.dumps(run.settings[key]) for run in (first, other)]
            if values[0] != values[1]:
                return f"one was evaluated with {name}={values[0]}, the other with {values[1]}; evaluate both alike"
    ours, theirs = first.examples, other.examples
    reasons = (
        _unlike("prompts", ours.drawings, theirs.drawings, lambda it: it.prompt),
        _unlike("pictures", ours.reconstructions, theirs.reconstructions, lambda it: _pixels(it.original)),
        _unlike(
            "questions",
            ours.answers,
            theirs.answers,
            lambda it: (it.question, it.expected, _pixels(it.picture)),
        ),
        _unlike("pictures", ours.captions, theirs.captions, lambda it: (it.expected, _pixels(it.picture))),
    )
    for reason in reasons:
        if reason:
            return reason
    measured = [{key for key in run.inputs.results if not key.startswith(TIME)} for run in (first, other)]
    if not measured[0] & measured[1]:
        return "they have no number in common"
    return None


def _unlike(
    what: str, ours: Sequence[Entry], theirs: Sequence[Entry], identity: Callable[[Entry], object]
) -> str | None:
    for left, right in side_by_side([ours, theirs]):
        assert left is not None and right is not None
        if identity(left) != identity(right):
            return f"they were evaluated on other {what}; evaluate both on the same data set"
    return None


def _pixels(path: Path) -> tuple[tuple[int, int], bytes]:
    try:
        with Image.open(path) as picture:
            return picture.size, picture.convert("RGB").tobytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read as a picture: {error}") from None


# --- settings and names ------------------------------------------------------------------------------------------


def _settings(run: Path) -> dict[str, Any]:
    """All settings of a run and its stages. Paths inside the run, as it was named then, begin with RUN/."""
    found: dict[str, Any] = {}
    for stage in ("", *STAGES, EVALUATION):
        file = run / stage / CONFIG
        if not file.is_file():
            continue
        settings = _yaml(file)
        here = str(settings.get("directory", ""))
        # A stage's directory lies in the run's.
        root = here.removesuffix(f"/{stage}") if stage in STAGES else here
        for key, value in flat(settings).items():
            if root and isinstance(value, str) and f"{value}/".startswith(f"{root}/"):
                value = f"RUN{value.removeprefix(root)}"
            found[f"{stage}: {key}" if stage else key] = value
    return found


def _yaml(file: Path) -> Mapping[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{file} holds no settings")
    return settings


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the runs' paths, as few as tell them apart. Raises UserError for a run named twice."""
    resolved = [path.resolve() for path in paths]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise UserError(f"{paths[number]} is named twice: a comparison is of different runs")
    parts = 1
    while True:
        names = ["/".join(path.parts[-parts:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
        parts += 1
