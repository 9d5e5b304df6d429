"""Puts the page together: inputs, sections, template; and writes it in one piece."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vilau_common import atomic
from vilau_common.report import sections
from vilau_common.report.curves import charts
from vilau_common.report.examples import Examples
from vilau_common.report.inputs import Inputs, read_inputs
from vilau_common.report.overview import overview
from vilau_common.report.pictures import inline_picture
from vilau_common.report.strips import strip_sections
from vilau_common.report.template import rendered
from vilau_common.report.words import STAGES

COMMIT_SHOWN = 10  # digits
MACHINE_FACTS = {  # of machine.json, in this order -> how the page words them
    "cpu": "{}",
    "cores": "{} cores",
    "memory_gib": "{} GiB of memory",
    "torch": "PyTorch {}",
    "python": "Python {}",
    "commit": "commit {}",
    "date": "{}",
}


def build_report(run: Path) -> Path:
    """Make RUN/report anew from what a demo left in RUN: index.html, which needs no other file, and overview.png,
    the picture for a README, where there are examples. Returns the path of index.html.

    A section without its input is left out, and the page says so. Raises UserError if there is no results.json or
    a file that is there cannot be understood; then an older report stays as it was.
    """
    inputs = read_inputs(run)
    page = render(inputs)
    picture = overview(inputs.examples) if inputs.examples is not None else None
    report = run / "report"
    with atomic.new_directory(report) as directory:
        (directory / "index.html").write_text(page, encoding="utf-8")
        if picture is not None:
            picture.save(directory / "overview.png", optimize=True)
    return report / "index.html"


def render(inputs: Inputs) -> str:
    """The page's HTML."""
    results = inputs.results
    examples = inputs.examples or Examples()
    rows = sections.result_rows(results, inputs.experiment)
    values = {
        "name": inputs.name,
        "experiment": inputs.experiment,
        "machine": machine_facts(inputs.machine),
        "rows": rows,
        "verdict": sections.verdict(rows),
        "missing": _missing(inputs),
        "reconstructions": [
            (inline_picture(example.original), inline_picture(example.reconstruction), example)
            for example in examples.reconstructions
        ],
        "drawings": sections.drawing_groups((d for d in examples.drawings if not d.held_out), results, ""),
        "held_out_drawings": sections.drawing_groups(
            (d for d in examples.drawings if d.held_out), results, sections.HELD_OUT
        ),
        "drawing_kinds": sections.by_kind(results, sections.DRAWN_OBJECTS),
        "answers": sections.answers_by_picture(examples.answers),
        "question_kinds": sections.by_kind(results, sections.QUESTIONS),
        "strips": strip_sections(examples, results),
        "captions": [(inline_picture(example.picture), example) for example in examples.captions],
        "trainings": [(STAGES[stage], charts(series)) for stage, series in inputs.metrics.items()],
        "usage": sections.codebook_usage(results),
        "times": sections.stage_times(results),
        "everything": sections.all_results(results),
    }
    return rendered("page.html.jinja", values)


def machine_facts(machine: Mapping[str, str | float]) -> list[str]:
    """What machine.json says, in words."""
    facts = dict(machine)
    if "commit" in facts:
        changes = ", with uncommitted changes" if facts.get("dirty") else ""
        facts["commit"] = f"{str(facts['commit'])[:COMMIT_SHOWN]}{changes}"
    return [wording.format(facts[name]) for name, wording in MACHINE_FACTS.items() if name in facts]


def _missing(inputs: Inputs) -> list[str]:
    """What the page leaves out, and why."""
    notes = []
    if inputs.examples is None:
        notes.append("pictures, drawings, questions and descriptions: there is no evaluation/examples.json")
    else:
        lists = {
            "reconstructions": inputs.examples.reconstructions,
            "drawings": inputs.examples.drawings,
            "questions": inputs.examples.answers,
            "descriptions": inputs.examples.captions,
        }
        notes += [
            f"{name}: evaluation/examples.json has none" for name, listed in lists.items() if not listed
        ]
    for stage in STAGES:
        if stage not in inputs.metrics:
            notes.append(f"training curves of {stage}: there is no {stage}/metrics.jsonl")
    if not sections.codebook_usage(inputs.results):
        notes.append("codebook usage: results.json has no tower/codebook_usage_d*")
    if not sections.stage_times(inputs.results):
        notes.append("time: results.json has no time/*_seconds")
    if not inputs.machine:
        notes.append("the machine: there is no machine.json")
    return notes
