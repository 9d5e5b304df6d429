"""The page: whole, self-contained, honest about what was right and what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vilau_common.errors import UserError
from vilau_common.report import build_report


def test_page_needs_no_other_file(maker: Any, parse: Callable[[Path], Any]) -> None:
    path = build_report(maker.path)
    assert path == maker.path / "report" / "index.html"
    page = parse(path)
    addresses = [
        value for _, has in page.tags for name, value in has.items() if name in ("src", "srcset", "href")
    ]
    assert any(value.startswith("data:image/png;base64,") for value in addresses)
    assert any(value.startswith("data:image/svg+xml;base64,") for value in addresses)
    assert all(value.startswith(("data:", "#")) for value in addresses)
    assert not page.count("script") and not page.count("link")
    assert "url(" not in path.read_text() and "@import" not in path.read_text()


def test_links_lead_to_sections(maker: Any, parse: Callable[[Path], Any]) -> None:
    page = parse(build_report(maker.path))
    targets = {has["href"] for tag, has in page.tags if tag == "a"}
    assert len(targets) > 5
    assert targets <= {f"#{has['id']}" for _, has in page.tags if "id" in has}


def test_right_and_wrong_are_marked(maker: Any, parse: Callable[[Path], Any]) -> None:
    page = parse(build_report(maker.path))
    assert page.count("img", class_="shown right") == 3  # one reconstruction, two drawings
    assert page.count("img", class_="shown wrong") == 2
    assert "✓ two" in page.text
    assert "✗ one right: three" in page.text
    assert "true: a star" in page.text


def test_held_out_drawings_stand_apart(maker: Any, parse: Callable[[Path], Any]) -> None:
    text = parse(build_report(maker.path)).text
    before, after = text.split("Drawings of held-out combinations")
    assert "“a red circle”" in before and "93.0 % of objects right" in before
    assert "“a cyan cross”" in after and "61.0 % of objects right" in after


def test_objects_beyond_those_asked_for_are_named(maker: Any, parse: Callable[[Path], Any]) -> None:
    drawing = maker.drawing(kind="scene", right=[True, True], picture_right=False)
    maker.write("evaluation/examples.json", {"drawings": [drawing]})
    assert "✗ wrong 2 of 2 objects more than asked for" in parse(build_report(maker.path)).text


def test_everything_from_outside_is_escaped(maker: Any, parse: Callable[[Path], Any]) -> None:
    given: list[str] = []

    def hostile() -> str:
        given.append(f"""<script>alert({len(given)})</script> & 'a' "b" {{{{ 7 * 7 }}}}""")
        return given[-1]

    caption = {"picture": maker.picture(), "caption": hostile(), "expected": hostile(), "right": False}
    examples = {
        "reconstructions": [{**maker.reconstruction(True), "caption": hostile()}],
        "drawings": [maker.drawing(prompt=hostile(), kind=hostile(), reading=hostile())],
        "answers": [maker.answer(question=hostile(), answer=hostile(), expected=hostile(), right=False)],
        "captions": [caption],
    }
    maker.write("evaluation/examples.json", examples)
    maker.write("results.json", {hostile(): 1, f"lm/question_accuracy/{hostile()}": 0.5})
    maker.write("machine.json", {"cpu": hostile(), "experiment": hostile()})
    page = parse(build_report(maker.path))
    assert not [text for text in given if text not in page.text]
    assert page.count("script") == 0
    assert any(has.get("alt") == f"drawn from: {given[3]}" for _, has in page.tags)


def test_results_stand_against_the_bars(maker: Any, parse: Callable[[Path], Any]) -> None:
    page = parse(build_report(maker.path))
    # Missed: read-back, whole drawings; captions were not measured, which misses the bar too.
    assert "6 of 9 bars met" in page.text
    assert page.count("td", class_="mark right") == 6
    assert page.count("td", class_="mark wrong") == 3
    assert "not measured" in page.text


def test_no_bars_for_other_experiments(maker: Any, parse: Callable[[Path], Any]) -> None:
    maker.write("machine.json", {"experiment": "smoke"})
    page = parse(build_report(maker.path))
    assert "No bars are set" in page.text
    assert page.count("td", class_="mark") == 0


def test_missing_parts_are_left_out_and_said(maker: Any, parse: Callable[[Path], Any]) -> None:
    shutil.rmtree(maker.path / "evaluation")
    shutil.rmtree(maker.path / "clip")
    (maker.path / "machine.json").unlink()
    maker.write("results.json", {"tower/psnr": 20.0})
    path = build_report(maker.path)
    page = parse(path)
    ids = {has["id"] for _, has in page.tags if "id" in has}
    assert ids == {"results", "training", "numbers"}
    told = (
        "evaluation/examples.json",
        "clip/metrics.jsonl",
        "machine.json",
        "time/*_seconds",
        "codebook_usage",
    )
    assert all(name in page.text for name in told)
    assert not (path.parent / "overview.png").exists()


def test_the_same_run_gives_the_same_files(maker: Any) -> None:
    first = build_report(maker.path)
    contents = [file.read_bytes() for file in sorted(first.parent.iterdir())]
    assert [file.name for file in sorted(first.parent.iterdir())] == ["index.html", "overview.png"]
    again = build_report(maker.path)
    assert [file.read_bytes() for file in sorted(again.parent.iterdir())] == contents


def _no_results(maker: Any) -> None:
    (maker.path / "results.json").unlink()


def _text_for_a_number(maker: Any) -> None:
    maker.write("results.json", {"tower/psnr": "high"})


def _broken_json(maker: Any) -> None:
    (maker.path / "results.json").write_text('{"tower/psnr": ')


def _key_missing(maker: Any) -> None:
    del maker.examples["answers"][1]["expected"]


def _wrong_type(maker: Any) -> None:
    maker.examples["drawings"][0]["right"] = "yes"


def _picture_missing(maker: Any) -> None:
    maker.examples["captions"][0]["picture"] = "pictures/gone.png"


def _picture_outside(maker: Any) -> None:
    shutil.copy(maker.path / "evaluation" / "pictures" / "0.png", maker.path / "private.png")
    maker.examples["captions"][0]["picture"] = "../private.png"


def _no_picture(maker: Any) -> None:
    (maker.path / "evaluation" / "pictures" / "0.png").write_text("<svg/>")


def _foreign_metrics(maker: Any) -> None:
    (maker.path / "lm" / "metrics.jsonl").write_text("loss 3.2\n")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_no_results, "there is no .*results.json"),
        (_text_for_a_number, "'tower/psnr' must be a number, not \"high\""),
        (_broken_json, "results.json is no JSON"),
        (_key_missing, r"answers\[1\] lacks 'expected'"),
        (_wrong_type, r"drawings\[0\]: 'right' must be a list of true and false, not 'yes'"),
        (_picture_missing, "there is no picture 'pictures/gone.png'"),
        (_picture_outside, "there is no picture '../private.png'"),
        (_no_picture, "0.png cannot be read as a picture"),
        (_foreign_metrics, "metrics.jsonl: line 1 is no line of metrics"),
    ],
)
def test_what_is_wrong_is_told_and_the_old_report_stays(
    maker: Any, spoil: Callable[[Any], None], told: str
) -> None:
    report = build_report(maker.path)
    before = report.read_bytes()
    spoil(maker)
    maker.write("evaluation/examples.json", maker.examples)
    with pytest.raises(UserError, match=told) as raised:
        build_report(maker.path)
    assert "\n" not in str(raised.value)
    assert report.read_bytes() == before
    assert sorted(path.name for path in maker.path.glob("report*")) == ["report"]


def test_results_are_shown_in_full(maker: Any, parse: Callable[[Path], Any]) -> None:
    text = parse(build_report(maker.path)).text
    results = json.loads((maker.path / "results.json").read_text())
    assert all(f"{key} {value:g}" in text for key, value in results.items())
