"""The panels of a sweep: curves over the rate or the depth, for the page (light and dark) and for one overview."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vilau_common.report.curves import COLOUR_MAP, DARK, FONT_SIZE, LIGHT, Chart, Theme
from vilau_common.report.pictures import data_uri

LIGHT_PANEL = LIGHT
# More curves than this have their legend beside the panel's curves in two columns and small print.
FEW_CURVES = 4
SMALL_PRINT = 7


@dataclass(frozen=True)
class Curve:
    """Points joined by a line."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One chart. whole_steps: the horizontal axis counts."""

    title: str
    explanation: str
    horizontal: str
    curves: Sequence[Curve]
    logarithmic: bool = False
    whole_steps: bool = False


def page_chart(panel: Panel, inches: tuple[float, float]) -> Chart:
    """The panel as two SVG pictures for a page."""
    light, dark = (_svg(panel, theme, inches) for theme in (LIGHT, DARK))
    return Chart(panel.title, panel.explanation, light, dark)


def draw(axes: Axes, panel: Panel, theme: Theme) -> None:
    """Draw the panel's curves, shaded from first to last."""
    start, end = theme.depths
    shades = matplotlib.colormaps[COLOUR_MAP]
    for index, curve in enumerate(panel.curves):
        shade = shades(start + (end - start) * index / max(1, len(panel.curves) - 1))
        xs, ys = zip(*curve.points, strict=True)
        axes.plot(xs, ys, color=shade, marker="o", markersize=4, linewidth=1.3, label=curve.label)
    axes.set_xlabel(panel.horizontal, color=theme.ink)
    if panel.whole_steps:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.logarithmic:
        axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(visible=True, color=theme.grid, linewidth=0.5, alpha=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.grid)
    few = len(panel.curves) <= FEW_CURVES
    axes.legend(
        frameon=False, labelcolor=theme.ink, ncols=1 if few else 2, fontsize=FONT_SIZE if few else SMALL_PRINT
    )


def _svg(panel: Panel, theme: Theme, inches: tuple[float, float]) -> str:
    # Ids in an SVG are random without a salt of ours: the same table shall give the same page.
    with matplotlib.rc_context(
        {"svg.hashsalt": "vilau", "font.size": FONT_SIZE, "font.family": "DejaVu Sans"}
    ):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure.subplots(), panel, theme)
        page = io.BytesIO()
        figure.savefig(page, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return data_uri("image/svg+xml", page.getvalue())
