"""A small run directory as a demo leaves it, and a way to look into a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

RESULTS = {
    "verifier/scene_accuracy": 0.995,
    "tower/psnr": 26.5,
    "tower/read_back_accuracy": 0.94,
    "tower/hard_negative_accuracy": 0.97,
    "tower/codebook_usage_d0": 1.0,
    "tower/codebook_usage_d1": 0.5,
    "lm/question_accuracy": 0.98,
    "lm/question_accuracy/count": 0.96,
    "lm/draw_object_accuracy": 0.91,
    "lm/draw_object_accuracy/single": 0.93,
    "lm/draw_scene_accuracy": 0.75,
    "held_out/lm/draw_object_accuracy": 0.62,
    "held_out/lm/draw_object_accuracy/single": 0.61,
    "time/lm_seconds": 300.0,
    "time/total_seconds": 640.0,
}


class RunMaker:
    """Writes the parts of a run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.examples: dict[str, list[dict[str, Any]]] = {
            "reconstructions": [self.reconstruction(right) for right in (True, False)],
            "drawings": [
                self.drawing(prompt="a red circle"),
                self.drawing(prompt="a blue square", right=[False], picture_right=False),
                self.drawing(prompt="a cyan cross", held_out=True),
            ],
            "answers": [
                self.answer(question="how many circles?", answer="two", expected="two", right=True),
                self.answer(question="how many squares?", answer="one", expected="three", right=False),
            ],
            "captions": [
                {"picture": self.picture(), "caption": "a dot", "expected": "a star", "right": False}
            ],
        }

    def picture(self, side: int = 8) -> str:
        """A new picture's path, relative to the evaluation."""
        directory = self.path / "evaluation" / "pictures"
        directory.mkdir(parents=True, exist_ok=True)
        number = len(list(directory.iterdir()))
        pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / f"{number}.png")
        return f"pictures/{number}.png"

    def reconstruction(self, right: bool) -> dict[str, Any]:
        pictures = {"original": self.picture(), "reconstruction": self.picture()}
        return {**pictures, "caption": "a red circle", "right": right}

    def drawing(self, **changes: Any) -> dict[str, Any]:
        whole = {"prompt": "a circle", "kind": "single", "picture": self.picture(), "right": [True]}
        return {**whole, "picture_right": True, "reading": "a circle", "held_out": False, **changes}

    def answer(self, **changes: Any) -> dict[str, Any]:
        whole = {"picture": self.picture(), "question": "?", "kind": "count", "answer": "one"}
        return {**whole, "expected": "one", "right": True, **changes}

    def write(self, name: str, contents: Any) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(contents), encoding="utf-8")

    def write_metrics(self, stage: str, lines: list[dict[str, Any]], end: str = "") -> None:
        path = self.path / stage / "metrics.jsonl"
        path.parent.mkdir(exist_ok=True)
        text = "".join(json.dumps({"stage": stage, **line}) + "\n" for line in lines)
        path.write_text(text + end, encoding="utf-8")

    def write_all(self) -> None:
        self.write("results.json", RESULTS)
        self.write("evaluation/examples.json", self.examples)
        self.write("machine.json", {"cpu": "Abacus 1", "cores": 2, "commit": None, "experiment": "scenes"})
        for stage in ("clip", "tower", "lm"):
            self.write_metrics(stage, [{"step": step, "loss/main": 5.0 / step} for step in (10, 20, 30)])


@pytest.fixture
def maker(tmp_path: Path) -> RunMaker:
    made = RunMaker(tmp_path / "demo")
    made.write_all()
    return made


@dataclass
class Page:
    """What a page holds, for a reader that knows HTML."""

    text: str = ""
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def count(self, tag: str, **attributes: str) -> int:
        """Elements of that tag which have each word in each attribute; class_ stands for class."""
        wanted = {name.rstrip("_"): set(value.split()) for name, value in attributes.items()}
        return sum(
            found == tag and all(words <= set(has.get(name, "").split()) for name, words in wanted.items())
            for found, has in self.tags
        )


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.page.text = " ".join(f"{self.page.text} {data}".split())


@pytest.fixture
def parse() -> Callable[[Path], Page]:
    def read(path: Path) -> Page:
        reader = _Reader()
        reader.feed(path.read_text(encoding="utf-8"))
        reader.close()
        return reader.page

    return read
