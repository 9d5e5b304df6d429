"""Training curves: one small chart for the losses of a stage, one for its losses by depth, one for each evaluation.

Every chart is drawn twice, for light and for dark pages; the page shows the one that suits its reader.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from vilau_common.report.inputs import Series
from vilau_common.report.pictures import data_uri
from vilau_common.report.words import EVALUATIONS, LOSSES, TOTAL, Measure

SIZE = (4.6, 3.0)  # inches; the page scales charts to its columns
LOG_FROM = 5.0  # times that a chart's largest value is its smallest: from there on its axis is logarithmic
MOST_LEGEND_COLUMNS = 4
TICKS_BELOW_ONE_DECADE = (1, 2, 5)
MAIN_LOSS = "loss/main"
EVALUATION = "evaluate/"
_TERM = re.compile(r"(?:train/)?loss/(?P<term>.+)")
_DEPTH = re.compile(r"(?P<term>.+)_d(?P<depth>\d+)")
FONT_SIZE = 9


@dataclass(frozen=True)
class Theme:
    """Colours of a chart on a light or a dark page."""

    ink: str
    grid: str
    lines: tuple[str, ...]
    depths: tuple[float, float]  # the part of the colour map that stands out from the page


LIGHT = Theme("#334155", "#cbd5e1", ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed"), (0.0, 0.85))
DARK = Theme("#cbd5e1", "#475569", ("#60a5fa", "#fbbf24", "#34d399", "#f472b6", "#a78bfa"), (0.3, 1.0))
COLOUR_MAP = "viridis"


@dataclass(frozen=True)
class Chart:
    """A chart for the page."""

    title: str
    explanation: str
    light: str  # data URIs
    dark: str


@dataclass(frozen=True)
class Line:
    """One curve; one without points has its colour all the same."""

    label: str
    points: list[tuple[int, float]]


def charts(series: Series) -> list[Chart]:
    """The charts of one training; no metrics, no charts."""
    losses, depths = _losses(series)
    found = [_chart("Losses", _told(losses), losses, logarithmic=True)] if losses else []
    for term, lines in depths.items():
        about = f"The {term} loss for each of the codes that together make one cell of the picture, coarse to fine."
        found.append(
            _chart(f"{term.capitalize()} loss by depth", about, lines, logarithmic=True, ordered=True)
        )
    for name, points in series.items():
        if name.startswith(EVALUATION):
            label = name.removeprefix(EVALUATION)
            measure = EVALUATIONS.get(label, Measure(label, "Measured on test data."))
            found.append(
                _chart(f"{measure.label} while training", measure.explanation, [Line(label, points)])
            )
    return found


def compared_charts(runs: Mapping[str, Series]) -> list[Chart]:
    """The trainings of one stage laid over each other: a chart for each loss and evaluation, a line for each run."""
    losses: dict[str, dict[str, list[tuple[int, float]]]] = {}
    evaluations: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for run, series in runs.items():
        for line in _losses(series)[0]:
            losses.setdefault(line.label, {})[run] = line.points
        for name, points in series.items():
            if name.startswith(EVALUATION):
                evaluations.setdefault(name.removeprefix(EVALUATION), {})[run] = points
    crowded = len(runs) > len(LIGHT.lines)

    def chart(
        title: str, about: str, found: Mapping[str, list[tuple[int, float]]], logarithmic: bool
    ) -> Chart:
        lines = [Line(run, found.get(run, [])) for run in runs]
        return _chart(title, about, lines, logarithmic=logarithmic, ordered=crowded)

    found = []
    for term, by_run in losses.items():
        about = f"Lower is better; {LOSSES[term]}." if term in LOSSES else "Lower is better."
        found.append(chart(f"{term.capitalize()} loss", about, by_run, logarithmic=True))
    for name, by_run in evaluations.items():
        measure = EVALUATIONS.get(name, Measure(name, "Measured on test data."))
        found.append(chart(f"{measure.label} while training", measure.explanation, by_run, logarithmic=False))
    return found


def _losses(series: Series) -> tuple[list[Line], dict[str, list[Line]]]:
    """The total and its terms, and apart from them what is given by depth."""
    losses: list[Line] = []
    depths: dict[str, list[Line]] = {}
    for name, points in series.items():
        if (match := _TERM.fullmatch(name)) is None:
            continue
        if depth := _DEPTH.fullmatch(match["term"]):
            depths.setdefault(depth["term"], []).append(Line(f"depth {int(depth['depth']) + 1}", points))
        elif name == MAIN_LOSS:
            losses.insert(0, Line(TOTAL, points))
        elif points != series.get(MAIN_LOSS):  # a total of one term says nothing new
            losses.append(Line(match["term"], points))
    return losses, depths


def _told(lines: Sequence[Line]) -> str:
    if len(lines) == 1:
        return "Lower is better."
    parts = [f"{line.label}: {LOSSES[line.label]}" for line in lines if line.label in LOSSES]
    return "; ".join(["Lower is better", *parts]) + "."


def _chart(
    title: str, explanation: str, lines: list[Line], *, logarithmic: bool = False, ordered: bool = False
) -> Chart:
    values = [value for line in lines for _, value in line.points if math.isfinite(value)]
    # A wide range of values is readable only on a logarithmic axis, which knows no zero.
    wide = bool(values) and min(values) > 0 and max(values) / min(values) >= LOG_FROM
    light, dark = (_svg(lines, theme, logarithmic and wide, ordered) for theme in (LIGHT, DARK))
    return Chart(title, explanation, light, dark)


def _svg(lines: list[Line], theme: Theme, logarithmic: bool, ordered: bool) -> str:
    # Ids in an SVG are random without a salt of ours: the same run shall give the same page.
    with matplotlib.rc_context(
        {"svg.hashsalt": "vilau", "font.size": FONT_SIZE, "font.family": "DejaVu Sans"}
    ):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for line, colour in zip(lines, _colours(lines, theme, ordered), strict=True):
            if not line.points:
                continue
            thick = 2.0 if line.label == TOTAL else 1.3
            marker = "o" if len(line.points) == 1 else None
            steps, values = zip(*line.points, strict=True)
            axes.plot(steps, values, color=colour, linewidth=thick, label=line.label, marker=marker)
        _style(axes, theme, logarithmic)
        if len(lines) > 1:
            rows = math.ceil(len(lines) / MOST_LEGEND_COLUMNS)
            columns = math.ceil(len(lines) / rows)
            figure.legend(loc="outside upper left", ncols=columns, frameon=False, labelcolor=theme.ink)
        page = io.BytesIO()
        figure.savefig(page, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return data_uri("image/svg+xml", page.getvalue())


def _colours(lines: list[Line], theme: Theme, ordered: bool) -> list[object]:
    """Shades from first to last for what has an order, else colours as different as can be, the total in ink."""
    if ordered:
        start, end = theme.depths
        shades = matplotlib.colormaps[COLOUR_MAP]
        return [shades(start + (end - start) * index / max(1, len(lines) - 1)) for index in range(len(lines))]
    terms = [line.label for line in lines if line.label != TOTAL]
    return [
        theme.ink if line.label == TOTAL else theme.lines[terms.index(line.label) % len(theme.lines)]
        for line in lines
    ]


def _style(axes: Axes, theme: Theme, logarithmic: bool) -> None:
    axes.set_xlabel("step", color=theme.ink)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=TICKS_BELOW_ONE_DECADE))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(visible=True, color=theme.grid, linewidth=0.5, alpha=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.grid)
