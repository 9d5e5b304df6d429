"""Runs side by side: what is compared with what, what is refused, and what the page says."""

from __future__ import annotations

import base64
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vilau_common.errors import UserError
from vilau_common.report import compare_runs
from vilau_common.report.comparable import side_by_side
from vilau_common.report.curves import compared_charts
from vilau_common.report.examples import Drawing
from vilau_common.report.numbers import difference, is_better

EVALUATED = {
    "directory": "runs/demo",
    "data": "data/scenes",
    "seed": 0,
    "drawings": 700,
    "examples": 48,
    "sampling": {"guidance": 2.0, "temperature": 0.3},
}


@pytest.fixture
def pair(maker: Any, tmp_path: Path) -> tuple[Any, Any]:
    """Two runs of the same evaluation; they differ in three numbers, in a drawing, and in a setting."""
    other = type(maker)(tmp_path / "other")
    other.write_all()
    for run, steps in ((maker, 100), (other, 200)):
        run.write("evaluation/config.yaml", EVALUATED)
        run.write("lm/config.yaml", {"directory": f"runs/{run.path.name}/lm", "training": {"steps": steps}})
    results = {
        "tower/psnr": 27.25,
        "lm/question_accuracy": 0.97,
        "lm/draw_object_accuracy/single": 0.95,
        "time/lm_seconds": 200.0,
        "verifier/scene_accuracy": 0.995,
        "lm/perplexity": 3.5,
    }
    other.write("results.json", results)
    other.examples["drawings"][0] |= {"right": [False], "picture_right": False, "reading": "a blue square"}
    other.write("evaluation/examples.json", other.examples)
    return maker, other


def row_of(page: str, label: str) -> str:
    """The page's text from a row's label on."""
    return page[page.index(label) : page.index(label) + 400]


def test_numbers_stand_beside_each_other(pair: Any, parse: Callable[[Path], Any]) -> None:
    path = compare_runs([run.path for run in pair])
    assert path == pair[0].path / "comparison" / "index.html"
    text = parse(path).text
    assert "26.5 dB 27.2 dB +0.8 dB" in row_of(text, "Reconstructions look alike")
    assert "98.0 % 97.0 % −1.0 points" in row_of(text, "Questions answered")
    assert "99.5 % 99.5 % same" in row_of(text, "The judge reads true pictures")
    # What only one run has been measured for is shown, without a difference.
    assert "75.0 % –" in row_of(text, "Pictures drawn right")
    assert "lm/perplexity – 3.5" in text
    table = (path.parent / "table.md").read_text().splitlines()
    assert table[0] == "| | demo | other |"
    assert "| `lm/draw_object_accuracy/single` | 93.0 % | 95.0 % (+2.0 points) |" in table
    assert "| `time/lm_seconds` | 300 s | 200 s (−100 s) |" in table


def test_better_and_worse_are_marked(pair: Any, parse: Callable[[Path], Any]) -> None:
    page = parse(compare_runs([run.path for run in pair]))
    # Twice each, for all numbers are listed again: PSNR and single objects; once the seconds. Worse: questions.
    assert page.count("small", class_="difference right") == 5
    assert page.count("small", class_="difference wrong") == 2
    assert page.count("small", class_="difference") == 5 + 2 + 2  # the judge is the same, twice


def test_one_row_a_prompt(pair: Any, parse: Callable[[Path], Any]) -> None:
    page = parse(compare_runs([run.path for run in pair]))
    assert page.text.count("a blue square reads") == 0
    assert page.text.count("a red circle ✓ right reads: a circle ✗ wrong reads: a blue square") == 1
    assert "Of 2 shown: 0 right in every run, 1 in some, 1 in none" in page.text
    assert "Single, held out" in page.text
    # Three prompts and two reconstructions in two runs; two originals, two questions' pictures and a caption's once.
    assert page.count("img", class_="shown") == 2 * (3 + 2) + 2 + 2 + 1


def test_settings_that_differ_are_listed_and_paths_of_the_run_are_not(
    pair: Any, parse: Callable[[Path], Any]
) -> None:
    text = parse(compare_runs([run.path for run in pair])).text
    assert "lm: training.steps 100 200" in text
    assert "1 setting " in text and "runs/demo" not in text


def test_the_page_needs_no_other_file(pair: Any, parse: Callable[[Path], Any]) -> None:
    page = parse(compare_runs([run.path for run in pair]))
    addresses = [
        value for _, has in page.tags for name, value in has.items() if name in ("src", "srcset", "href")
    ]
    assert all(value.startswith(("data:", "#")) for value in addresses)
    links = {value for value in addresses if value.startswith("#")}
    assert links <= {f"#{has['id']}" for _, has in page.tags if "id" in has}
    assert page.count("picture") == 3  # the total loss of each stage: both runs have that


def test_everything_from_outside_is_escaped(pair: Any, parse: Callable[[Path], Any]) -> None:
    hostile = "<script>alert(1)</script>"
    for run in pair:
        run.examples["drawings"][0] |= {"prompt": hostile, "reading": hostile, "kind": hostile}
        run.examples["answers"][0] |= {"question": hostile, "answer": hostile}
        run.write("evaluation/examples.json", run.examples)
        run.write("lm/config.yaml", {"lm": {hostile: run.path.name}})
    page = parse(compare_runs([run.path for run in pair]))
    assert page.count("script") == 0
    assert page.text.count(hostile) >= 7


def test_more_runs_and_another_place(pair: Any, tmp_path: Path, parse: Callable[[Path], Any]) -> None:
    third = tmp_path / "elsewhere" / "demo"
    shutil.copytree(pair[0].path, third)
    (third / "clip" / "metrics.jsonl").unlink()
    path = compare_runs([*(run.path for run in pair), third], tmp_path / "page")
    assert path == tmp_path / "page" / "index.html"
    assert not (pair[0].path / "comparison").exists()
    page = parse(path)
    assert "elsewhere/demo" in page.text  # demo alone would be two runs
    assert "26.5 dB 27.2 dB +0.8 dB 26.5 dB same" in page.text
    again = compare_runs([run.path for run in pair], tmp_path / "page")
    assert "elsewhere" not in again.read_text()


def test_examples_kept_in_different_numbers_are_compared_as_far_as_they_go(
    pair: Any, parse: Callable[[Path], Any]
) -> None:
    ours = pair[0]
    ours.examples["drawings"].append(ours.drawing(prompt="a grey ring", kind="two"))
    ours.examples["captions"] = []
    ours.write("evaluation/examples.json", ours.examples)
    ours.write("evaluation/config.yaml", {**EVALUATED, "examples": 60, "data": "elsewhere/scenes"})
    text = parse(compare_runs([run.path for run in pair])).text
    assert "a grey ring" not in text and "a red circle" in text
    assert "Descriptions" not in text


def test_a_run_without_the_sort_has_an_empty_column() -> None:
    def drawing(prompt: str) -> Drawing:
        return Drawing(prompt, "single", Path(), (True,), True, "", False)

    first, second = drawing("a"), drawing("b")
    assert side_by_side([[first, second], [], [first]]) == [[first, None, first]]
    assert side_by_side([[first], []]) == side_by_side([[], []]) == []


# --- refusals ---------------------------------------------------------------------------------------------------


def _seed(other: Any) -> None:
    other.write("evaluation/config.yaml", {**EVALUATED, "seed": 1})


def _prompts(other: Any) -> None:
    other.examples["drawings"][1]["prompt"] = "a grey ring"


def _questions(other: Any) -> None:
    other.examples["answers"][0]["expected"] = "nine"


def _pictures(other: Any) -> None:
    shutil.copy(
        other.path / "evaluation" / "pictures" / "1.png", other.path / "evaluation" / "pictures" / "0.png"
    )


def _not_evaluated(other: Any) -> None:
    (other.path / "evaluation" / "config.yaml").unlink()


def _no_settings(other: Any) -> None:
    (other.path / "lm" / "config.yaml").write_text("a: [")


def _nothing_in_common(other: Any) -> None:
    other.write("results.json", {"tower/rfid": 2.0, "time/lm_seconds": 200.0})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_seed, "demo and .*other cannot be compared: one was evaluated with seed=0, the other with 1"),
        (_prompts, "cannot be compared: they were evaluated on other prompts"),
        (_questions, "cannot be compared: they were evaluated on other questions"),
        (_pictures, "cannot be compared: they were evaluated on other pictures"),
        (_not_evaluated, "other cannot be compared: it has no evaluation/config.yaml"),
        (_no_settings, "lm/config.yaml cannot be read"),
        (_nothing_in_common, "cannot be compared: they have no number in common"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_in_a_sentence(
    pair: Any, spoil: Callable[[Any], None], told: str
) -> None:
    spoil(pair[1])
    pair[1].write("evaluation/examples.json", pair[1].examples)
    with pytest.raises(UserError, match=told) as raised:
        compare_runs([run.path for run in pair])
    assert "\n" not in str(raised.value)
    assert not (pair[0].path / "comparison").exists()


def test_a_run_is_not_compared_with_itself(pair: Any) -> None:
    path = pair[0].path
    with pytest.raises(UserError, match="is named twice"):
        compare_runs([path, path / ".." / path.name])
    with pytest.raises(UserError, match="two or more"):
        compare_runs([path])


def test_what_is_no_comparison_is_not_replaced(pair: Any) -> None:
    with pytest.raises(UserError, match="holds no comparison"):
        compare_runs([run.path for run in pair], pair[1].path)
    assert (pair[1].path / "results.json").is_file()


# --- numbers and curves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "reference", "text", "better"),
    [
        ("lm/question_accuracy", 0.9712, 0.95, "+2.1 points", True),
        ("lm/question_accuracy", 0.95, 0.95004, "−0.004 points", False),
        ("lm/question_accuracy", 0.95, 0.95, "same", None),
        ("time/lm_seconds", 640.0, 797.0, "−157 s", True),
        ("tower/rfid", 2.5, 2.0, "+0.500", False),
        ("tower/kid_std", 2.5, 2.0, "+0.500", None),
        ("tower/dead_codes_d0", 6, 12, "−6", True),
        ("tower/codebook_perplexity_d0", 60.0, 12.0, "+48.000", None),
        ("lm/perplexity", 60.0, 12.0, "+48.000", False),
        ("lm/question_accuracy", math.nan, 0.9, "+nan points", None),
    ],
)
def test_differences(key: str, value: float, reference: float, text: str, better: bool | None) -> None:
    assert difference(key, value, reference) == text
    assert is_better(key, value, reference) is better


def test_curves_are_laid_over_each_other() -> None:
    ours = {
        "loss/main": [(10, 3.0), (20, 1.0)],
        "train/loss/text": [(10, 2.0)],
        "train/loss/visual_d0": [(10, 1.0)],
    }
    theirs = {"loss/main": [(10, 4.0), (30, 2.0)], "evaluate/psnr": [(30, 25.0)]}
    found = compared_charts({"ours": ours, "theirs": theirs})
    assert [chart.title for chart in found] == ["Total loss", "Text loss", "PSNR while training"]
    total, text, _ = (base64.b64decode(chart.light.split(",")[1]).decode() for chart in found)
    # Text is drawn as outlines, with a comment that says it.
    assert "<!-- ours -->" in total and "<!-- theirs -->" in total
    assert "<!-- ours -->" in text and "<!-- theirs -->" not in text
    # A run has its colour even where another has no curve.
    alone = compared_charts({"theirs": {}, "ours": ours})
    assert base64.b64decode(alone[0].light.split(",")[1]) != base64.b64decode(
        compared_charts({"ours": ours, "theirs": {}})[0].light.split(",")[1]
    )
