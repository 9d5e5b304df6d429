"""The parts of the page as plain records: what the template shows, already chosen, grouped and worded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vilau_common.report.bars import BARS
from vilau_common.report.examples import Answer, Drawing
from vilau_common.report.numbers import bar_text, duration, exact, shown
from vilau_common.report.pictures import InlinePicture, inline_picture
from vilau_common.report.words import KINDS, MEASURES, WORK, Measure

HELD_OUT = "held_out/"
QUESTIONS = "lm/question_accuracy"
DRAWN_OBJECTS = "lm/draw_object_accuracy"
TOTAL_SECONDS = "time/total_seconds"
_USAGE = re.compile(r"tower/codebook_usage_d(\d+)")
_STAGE_SECONDS = re.compile(r"time/(.+)_seconds")


@dataclass(frozen=True)
class ResultRow:
    """A line of the table of results."""

    measure: Measure
    value: str
    held_out: str  # the same on combinations never trained on; empty where it was not measured
    bar: str  # empty where none applies
    met: bool | None  # None where there is no bar


@dataclass(frozen=True)
class Proportion:
    """A line with a bar as long as the share."""

    label: str
    explanation: str
    value: str
    share: float  # in [0, 1]
    held_out: str = ""


@dataclass(frozen=True)
class DrawingGroup:
    """Drawings of one kind."""

    kind: str
    explanation: str
    accuracy: str  # over all prompts of the kind, not the shown ones alone; empty where it was not measured
    drawings: list[tuple[InlinePicture, Drawing]]


@dataclass(frozen=True)
class PictureAnswers:
    """Answers to all questions about one picture."""

    picture: InlinePicture
    answers: list[Answer]


def result_rows(results: Mapping[str, float], experiment: str | None) -> list[ResultRow]:
    """What has a bar, measured or not, and what else the page can explain."""
    bars = BARS.get(experiment or "", {})
    rows = []
    for key, measure in MEASURES.items():
        bar, value, held_out = bars.get(key), results.get(key), results.get(HELD_OUT + key)
        if bar is None and value is None and held_out is None:
            continue
        rows.append(
            ResultRow(
                measure=measure,
                value="not measured" if value is None else shown(key, value, bar),
                held_out="" if held_out is None else shown(key, held_out),
                bar="" if bar is None else bar_text(key, bar),
                met=None if bar is None else value is not None and bar.met(value),
            )
        )
    return rows


def verdict(rows: Iterable[ResultRow]) -> str:
    """ "9 of 10 bars met"; empty where there is no bar."""
    judged = [row.met for row in rows if row.met is not None]
    return f"{sum(judged)} of {len(judged)} bars met" if judged else ""


def by_kind(results: Mapping[str, float], key: str) -> list[Proportion]:
    """The accuracies `key`/<kind>, with those on held-out combinations beside them."""
    names = [name.removeprefix(HELD_OUT) for name in results]
    lines = []
    for kind in dict.fromkeys(name.removeprefix(f"{key}/") for name in names if name.startswith(f"{key}/")):
        name = f"{key}/{kind}"
        value, held_out = results.get(name), results.get(HELD_OUT + name)
        lines.append(
            Proportion(
                label=kind.replace("_", " "),
                explanation=KINDS.get(kind, ""),
                value="" if value is None else shown(name, value),
                share=_share(value),
                held_out="" if held_out is None else shown(name, held_out),
            )
        )
    return lines


def codebook_usage(results: Mapping[str, float]) -> list[Proportion]:
    """The share of codes in use, depth by depth."""
    found = sorted((int(match[1]), key) for key in results if (match := _USAGE.fullmatch(key)))
    return [
        Proportion(f"depth {depth + 1}", "", shown(key, results[key]), _share(results[key]))
        for depth, key in found
    ]


def stage_times(results: Mapping[str, float]) -> list[Proportion]:
    """The time of each stage, as a share of all of it, in the order of results.json; then their total."""
    found = {match[1]: results[key] for key in results if (match := _STAGE_SECONDS.fullmatch(key))}
    total = found.pop("total", sum(found.values()))
    lines = [
        Proportion(
            label=stage.replace("_", " "),
            explanation=WORK.get(stage, ""),
            value=duration(seconds),
            share=_share(seconds / total if total else 0),
        )
        for stage, seconds in found.items()
    ]
    return [*lines, Proportion("everything", "", duration(total), 1.0)] if lines else []


def drawing_groups(
    drawings: Iterable[Drawing], results: Mapping[str, float], prefix: str
) -> list[DrawingGroup]:
    """The drawings by kind, in their order; prefix: of the results that belong to them, "" or "held_out/"."""
    kinds: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        kinds.setdefault(drawing.kind, []).append(drawing)
    groups = []
    for kind, members in kinds.items():
        key = f"{prefix}{DRAWN_OBJECTS}/{kind}"
        groups.append(
            DrawingGroup(
                kind=kind.replace("_", " "),
                explanation=KINDS.get(kind, ""),
                accuracy=shown(key, results[key]) if key in results else "",
                drawings=[(inline_picture(drawing.picture), drawing) for drawing in members],
            )
        )
    return groups


def answers_by_picture(answers: Iterable[Answer]) -> list[PictureAnswers]:
    """The answers, those about one picture together."""
    pictures: dict[str, list[Answer]] = {}
    for answer in answers:
        pictures.setdefault(str(answer.picture), []).append(answer)
    return [PictureAnswers(inline_picture(group[0].picture), group) for group in pictures.values()]


def all_results(results: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every number under its own key."""
    return [(key, exact(value)) for key, value in results.items()]


def _share(value: float | None) -> float:
    """A bar's length; nothing for what is no number (NaN compares with nothing)."""
    return min(value, 1.0) if value is not None and value > 0 else 0.0
