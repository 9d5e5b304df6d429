"""A sweep's page: what the rate buys, how the codes are used, what it costs; from sweep.csv, with no other file.

Every point is D codes of K at each position; curves join the points of one K, and of one kind where kinds are swept.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from vilau_common import atomic
from vilau_common.errors import UserError
from vilau_common.report.numbers import duration, shown
from vilau_common.report.sweep_charts import LIGHT_PANEL, Curve, Panel, draw, page_chart
from vilau_common.report.template import rendered

FINISHED = "finished"
BY_DEPTH = "_d"
RATE = "bits_per_position"
RATE_LABEL = "bits a position (D·log₂K)"
OVERVIEW_COLUMNS = 3
PANEL_INCHES = (4.4, 3.2)
OVERVIEW_DPI = 110


@dataclass(frozen=True)
class Measured:
    """A number that is drawn over the rate."""

    key: str
    title: str
    explanation: str
    factor: float = 1.0


OVER_RATE = (
    Measured("psnr", "PSNR, dB", "How close reconstructions come in pixels; higher is better."),
    Measured("read_back_accuracy", "Read back, %", "Reconstructions that show the same objects, by the verifier.", 100),
    Measured("hard_negative_accuracy", "Near misses, %", "Pictures that know their caption from near misses.", 100),
    Measured("zero_shot_top1", "Zero-shot top-1, %", "Pictures nearest to their own class's name.", 100),
    Measured("retrieval_image_to_text_r1", "R@1 of captions, %", "Pictures whose nearest caption is their own.", 100),
    Measured("step_seconds", "Training step, ms", "Median time of a training step.", 1000),
    Measured("encode_pictures_per_second", "Encoding, pictures/s", "Pictures turned into codes in a second."),
)  # fmt: skip
OVER_DEPTH = (
    Measured(
        "codebook_usage",
        "Codes in use, %",
        "Share of the K codes that occur on test pictures, by depth.",
        100,
    ),
    Measured(
        "codebook_perplexity", "Perplexity", "As many equally frequent codes would tell as much, by depth."
    ),
)
COLUMNS = {
    RATE: "bits",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "read_back_accuracy": "read back",
    "hard_negative_accuracy": "near misses",
    "zero_shot_top1": "top-1",
    "retrieval_image_to_text_r1": "R@1",
    "encode_pictures_per_second": "encode/s",
}

Row = Mapping[str, str]


def build_sweep_report(table: Path) -> Path:
    """Write report/index.html, report/sweep.png and report/table.md beside sweep.csv; returns the path of index.html.

    What no point has measured is left out. UserError: the table cannot be read.
    """
    rows = read_table(table)
    panels = [*panels_over_rate(rows), *panels_over_depth(rows)]
    finished = [row for row in rows if row["status"] == FINISHED]
    columns = [key for key in COLUMNS if any(row.get(key) for row in finished)]
    values = {
        "name": table.resolve().parent.name,
        "charts": [page_chart(panel, PANEL_INCHES) for panel in panels],
        "columns": [COLUMNS[key] for key in columns],
        "points": [point_row(row, columns) for row in rows],
        "finished": len(finished),
    }
    page = rendered("sweep.html.jinja", values)
    report = table.parent / "report"
    with atomic.new_directory(report) as directory:
        (directory / "index.html").write_text(page, encoding="utf-8")
        (directory / "table.md").write_text(markdown(rows, columns), encoding="utf-8")
        if panels:
            overview(panels).savefig(directory / "sweep.png", dpi=OVERVIEW_DPI)
    return report / "index.html"


def read_table(table: Path) -> list[Row]:
    """The lines of a sweep.csv. UserError: there is none."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows: list[Row] = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{table} cannot be read: {error}") from None
    if not rows or not {"point", "status"} <= rows[0].keys():
        raise UserError(f"{table} is not a table of a sweep: it has no lines, or no columns point and status")
    return rows


def panels_over_rate(rows: Sequence[Row]) -> list[Panel]:
    """A panel for each number that a point has; a curve for each K and kind."""
    panels = []
    for measured in OVER_RATE:
        curves: dict[tuple[str, float], list[tuple[float, float]]] = {}
        for row in rows:
            value, rate = number(row, measured.key), number(row, RATE)
            if value is not None and rate is not None:
                size = number(row, "codebook_size") or math.nan
                curves.setdefault((kind(row), size), []).append((rate, value * measured.factor))
        if curves:
            named = [
                Curve(f"{chosen} K={size:g}".strip(), sorted(points))
                for (chosen, size), points in sorted(curves.items())
            ]
            panels.append(Panel(measured.title, measured.explanation, RATE_LABEL, named))
    return panels


def panels_over_depth(rows: Sequence[Row]) -> list[Panel]:
    """A panel each for usage and perplexity; a curve for each point, by K and D."""
    panels = []
    ordered = sorted(rows, key=lambda row: (number(row, "codebook_size") or 0, _depth(row)))
    for measured in OVER_DEPTH:
        curves = []
        for row in ordered:
            values = [number(row, f"{measured.key}{BY_DEPTH}{depth}") for depth in range(_depth(row))]
            points = [
                (depth + 1.0, value * measured.factor)
                for depth, value in enumerate(values)
                if value is not None
            ]
            if points:
                curves.append(Curve(row["point"], points))
        if curves:
            logarithmic = measured.factor == 1.0
            panels.append(
                Panel(measured.title, measured.explanation, "depth", curves, logarithmic, whole_steps=True)
            )
    return panels


def kind(row: Row) -> str:
    """What the point's overrides choose of a config group inside another, such as tower/quantizer=fsq; or nothing."""
    pairs = (override.partition("=") for override in (row.get("overrides") or "").split())
    return " ".join(choice for name, _, choice in pairs if "/" in name)


def number(row: Row, key: str) -> float | None:
    """A row's number; None where it has none."""
    text = row.get(key)
    return float(text) if text else None


def point_row(row: Row, columns: Sequence[str]) -> dict[str, object]:
    """A point as the page's table shows it."""
    seconds = number(row, "train_seconds")
    return {
        "name": row["point"],
        "status": row["status"],
        "error": row.get("error") or "",
        "values": [_shown(row, key) for key in columns],
        "time": "" if seconds is None else duration(seconds),
    }


def markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The table for a README."""
    heads = ["point", *(COLUMNS[key] for key in columns), "training"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        seconds = number(row, "train_seconds")
        last = row["status"] if seconds is None else duration(seconds)
        lines.append(f"| {' | '.join([row['point'], *(_shown(row, key) for key in columns), last])} |")
    return "\n".join(lines) + "\n"


def overview(panels: Sequence[Panel]) -> Figure:
    """All panels on one picture."""
    columns = min(OVERVIEW_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained", facecolor="white")
    all_axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, panel in zip(all_axes, panels, strict=False):
        draw(axes, panel, LIGHT_PANEL)
        axes.set_title(panel.title, color=LIGHT_PANEL.ink)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    return figure


def _depth(row: Row) -> int:
    return int(number(row, "depth") or 0)


def _shown(row: Row, key: str) -> str:
    value = number(row, key)
    if value is None:
        return ""
    return f"{value:g}" if key == RATE else shown(key, value)
