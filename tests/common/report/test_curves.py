"""Training curves: what is read from metrics.jsonl, and which charts come of it."""

from __future__ import annotations

import base64
import math
from typing import Any

from vilau_common.report.curves import charts
from vilau_common.report.inputs import read_series


def test_lines_of_a_killed_training_are_read(maker: Any) -> None:
    lines = [{"step": 10, "loss/main": 2.0}, {"step": 20, "loss/main": None, "evaluate/psnr": 21.0}]
    maker.write_metrics("tower", lines, end='{"step": 30, "loss/m')
    series = read_series(maker.path / "tower" / "metrics.jsonl")
    assert series["evaluate/psnr"] == [(20, 21.0)]
    assert series["loss/main"][0] == (10, 2.0)
    assert series["loss/main"][1][0] == 20 and math.isnan(series["loss/main"][1][1])


def test_losses_depths_and_evaluations_have_charts_of_their_own() -> None:
    points = [(10, 3.0), (20, 1.0)]
    higher = [(10, 4.0), (20, 2.0)]
    names = ["train/loss/text", "train/loss/visual", "train/loss/visual_d0", "train/loss/visual_d1"]
    found = charts(
        {"loss/main": higher, **dict.fromkeys(names, points), "evaluate/psnr": points, "time/x": points}
    )
    assert [chart.title for chart in found] == ["Losses", "Visual loss by depth", "PSNR while training"]
    assert "text:" in found[0].explanation and "visual_d0" not in found[0].explanation


def test_a_total_of_one_term_is_one_line() -> None:
    points = [(10, 3.0), (20, 1.0)]
    (chart,) = charts({"loss/main": points, "train/loss/contrastive": points})
    assert "contrastive" not in chart.explanation


def test_charts_are_drawn_for_light_and_dark_pages_and_for_any_values() -> None:
    for values in ([1.0], [0.0, 0.0], [-1.0, 5.0], [math.nan, math.nan], [1e-4, 1.0, 1e4]):
        (chart,) = charts({"loss/main": list(enumerate(values))})
        light, dark = (base64.b64decode(uri.split(",")[1]) for uri in (chart.light, chart.dark))
        assert b"<svg" in light and b"<svg" in dark and light != dark


def test_no_metrics_no_charts() -> None:
    assert charts({}) == []
