"""`vilau guidance RUN`: guidance against drawing accuracy. A run's evaluation prompts are drawn at several scales;
prompts, seeds and all other settings stay as they were evaluated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from vilau_common import atomic
from vilau_common.data.worlds.registry import world_of
from vilau_common.errors import UserError
from vilau_common.report.numbers import shown
from vilau_common.report.sweep import OVERVIEW_DPI, overview
from vilau_common.report.sweep_charts import Curve, Panel
from vilau_unified_lm.evaluation.drawing import drawing_metrics
from vilau_unified_lm.evaluation.run import draw_split, evaluated_settings
from vilau_unified_lm.evaluation.splits import TEST, test_splits
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import Session

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
GUIDANCE = "guidance"  # the directory in the run
OBJECTS, SCENES, HELD_OUT = "draw_object_accuracy", "draw_scene_accuracy", "held_out/"
# Curves of the first panel, and the first columns of the table.
TOTALS = {
    OBJECTS: "objects",
    SCENES: "whole scenes",
    f"{HELD_OUT}{OBJECTS}": "objects, held out",
}

Results = Mapping[float, Mapping[str, float]]
"""Guidance scale -> the numbers of `drawing_metrics`, those of held-out combinations behind "held_out/"."""


def sweep_guidance(run: Path, scales: Sequence[float] = SCALES) -> Path:
    """Write guidance.png, table.md and results.json into RUN/guidance; returns the path of the picture.

    Raises UserError for a scale below 0, and for a run that was not evaluated on a built-in world.
    """
    config = evaluated_settings(run)
    if config is None:
        raise UserError(f"{run} was not evaluated: guidance is swept over the prompts of vilau evaluate")
    samplings = {
        scale: Sampling(**{**asdict(config.sampling), "guidance": scale}) for scale in sorted(set(scales))
    }
    data = Path(config.data)
    world = world_of(data / TEST)
    session = Session.open(run)
    results: dict[float, dict[str, float]] = {scale: {} for scale in samplings}
    for prefix, split in test_splits(data):
        for scale, sampling in samplings.items():
            drawings = draw_split(session, world, split, config, sampling)
            results[scale] |= {f"{prefix}{key}": value for key, value in drawing_metrics(drawings).items()}
    with atomic.new_directory(run / GUIDANCE) as directory:
        overview(panels(results)).savefig(directory / "guidance.png", dpi=OVERVIEW_DPI)
        (directory / "table.md").write_text(markdown(results, config.drawings), encoding="utf-8")
        (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return run / GUIDANCE / "guidance.png"


def panels(results: Results) -> list[Panel]:
    """Totals, and objects by kind of prompt, each over the scale."""

    def curve(key: str, label: str) -> Curve:
        return Curve(label, [(scale, 100 * found[key]) for scale, found in results.items() if key in found])

    totals = [
        curve(key, label) for key, label in TOTALS.items() if any(key in found for found in results.values())
    ]
    kinds = [curve(key, kind.replace("_", " ")) for key, kind in _kinds(results).items()]
    drawn = [
        Panel("Drawn right, %", "Over all prompts.", GUIDANCE, totals),
        Panel("Objects right by kind of prompt, %", "On test data.", GUIDANCE, kinds),
    ]
    return [panel for panel in drawn if panel.curves]


def markdown(results: Results, prompts: int) -> str:
    """The table for a README. prompts: so many were drawn of each test split."""
    columns = {**TOTALS, **_kinds(results)}
    columns = {key: name for key, name in columns.items() if any(key in found for found in results.values())}
    lines = [f"| guidance | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for scale, found in results.items():
        cells = [shown(key, found[key]) if key in found else "" for key in columns]
        lines.append(f"| {scale:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{prompts} prompts a row and test split, the same with the same seeds.\n"


def _kinds(results: Results) -> dict[str, str]:
    """Key -> kind of prompt, of test data."""
    keys = dict.fromkeys(key for found in results.values() for key in found)
    return {key: key.removeprefix(f"{OBJECTS}/") for key in keys if key.startswith(f"{OBJECTS}/")}
