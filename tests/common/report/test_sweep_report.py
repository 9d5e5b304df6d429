"""The page of a sweep, from tables that a sweep may leave."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vilau_common.errors import UserError
from vilau_common.report.sweep import build_sweep_report, panels_over_depth, panels_over_rate, read_table


def point(size: int, depth: int, **more: Any) -> dict[str, Any]:
    numbers = {"bits_per_position": depth * size.bit_length() - depth, "codebook_size": size, "depth": depth}
    usage = {f"codebook_usage_d{d}": 1 / (d + 1) for d in range(depth)}
    perplexity = {f"codebook_perplexity_d{d}": size / (d + 2) for d in range(depth)}
    facts = {"point": f"K={size},D={depth}", "status": "finished", "psnr": 20 + depth, "train_seconds": 80.0}
    return {**facts, **numbers, **usage, **perplexity, **more}


FAILED = {"point": "K=1,D=1", "status": "failed", "error": "a codebook needs <2> codes"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(*rows: dict[str, Any]) -> Path:
        path = tmp_path / "my_sweep" / "sweep.csv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return written


def test_page_shows_every_point_and_needs_no_other_file(
    write: Callable[..., Path], parse: Callable[[Path], Any]
) -> None:
    page = build_sweep_report(write(point(64, 1), point(64, 2, read_back_accuracy=0.5), FAILED))
    seen = parse(page)
    assert "The sweep my_sweep" in seen.text
    assert "2 of 3 points are finished" in seen.text
    for text in ("K=64,D=2", "50.0 %", "22.0 dB", "1 min 20 s", "failed a codebook needs <2> codes"):
        assert text in seen.text
    assert seen.count("figure") == 4  # PSNR, read back, usage, perplexity
    for tag, attributes in seen.tags:
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), tag
    assert Image.open(page.parent / "sweep.png").size[0] > 1000
    table = (page.parent / "table.md").read_text().splitlines()
    assert table[0] == "| point | bits | PSNR | read back | training |"
    assert table[2:] == [
        "| K=64,D=1 | 6 | 21.0 dB |  | 1 min 20 s |",
        "| K=64,D=2 | 12 | 22.0 dB | 50.0 % | 1 min 20 s |",
        "| K=1,D=1 |  |  |  | failed |",
    ]


def test_curves_join_the_points_of_one_codebook_size(write: Callable[..., Path]) -> None:
    rows = read_table(write(point(256, 2), point(64, 2), point(64, 1), FAILED))
    psnr = panels_over_rate(rows)[0]
    assert [(curve.label, list(curve.points)) for curve in psnr.curves] == [
        ("K=64", [(6.0, 21.0), (12.0, 22.0)]),
        ("K=256", [(16.0, 22.0)]),
    ]
    usage, perplexity = panels_over_depth(rows)
    assert [curve.label for curve in usage.curves] == ["K=64,D=1", "K=64,D=2", "K=256,D=2"]
    assert usage.curves[1].points == [(1.0, 100.0), (2.0, 50.0)]
    assert perplexity.logarithmic


def test_kinds_have_curves_of_their_own(write: Callable[..., Path]) -> None:
    kinds = ("lfq_256", "rq_256", "lfq_256")
    overrides = [f"tower/quantizer={kind} data.directory=/tmp/data" for kind in kinds]
    points = [point(256, depth, overrides=overrides[depth - 1]) for depth in (1, 2, 3)]
    psnr = panels_over_rate(read_table(write(*points)))[0]
    assert [(curve.label, list(curve.points)) for curve in psnr.curves] == [
        ("lfq_256 K=256", [(8.0, 21.0), (24.0, 23.0)]),
        ("rq_256 K=256", [(16.0, 22.0)]),
    ]


def test_a_sweep_in_which_all_failed_has_a_page(
    write: Callable[..., Path], parse: Callable[[Path], Any]
) -> None:
    page = build_sweep_report(write(FAILED))
    assert "0 of 1 points are finished" in parse(page).text
    assert not (page.parent / "sweep.png").exists()


def test_what_is_no_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        build_sweep_report(tmp_path / "sweep.csv")
    (tmp_path / "sweep.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is not a table of a sweep"):
        build_sweep_report(tmp_path / "sweep.csv")
