"""Examples kept for the report: pictures as files, and examples.json that says what they show."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from vilau_common.data.split import Split
from vilau_common.data.worlds.scene import Scene
from vilau_common.moving_pictures import write_gif, write_mp4
from vilau_unified_lm.evaluation.drawing import Drawing
from vilau_unified_lm.evaluation.language import Written

Item = TypeVar("Item")


@dataclass
class Strip:
    """A row of pictures that belong together, and what became of it."""

    kind: str
    pictures: Sequence[npt.NDArray[np.uint8]]  # [H, W, 3] each
    labels: Sequence[str]  # of each picture, may be empty
    text: str  # what was asked
    outcome: str  # what the model wrote, or the verifier reads
    right: bool
    moving: bool = False  # the pictures are frames that the model drew


class ExampleWriter:
    """Collects at most `count` examples of each sort, spread evenly over kinds, right and wrong as they come."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory = directory
        self.count = count
        self.examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
        (directory / "pictures").mkdir()

    def reconstructions(
        self, split: Split, reconstructions: npt.NDArray[np.uint8], right: npt.NDArray[np.bool_]
    ) -> None:
        """The first pictures of the split beside what their codes keep of them."""
        for index in split.known()[: self.count]:
            self.examples["reconstructions"].append(
                {
                    "original": self._picture(f"original_{index}", split.images[index]),
                    "reconstruction": self._picture(f"reconstruction_{index}", reconstructions[index]),
                    "caption": split.captions[index][0],
                    "right": bool(right[index]),
                }
            )

    def written(self, sort: str, split: Split, items: Sequence[Written]) -> None:
        """Answers or captions; sort: "answers" or "captions"."""
        for item in self._spread(items, [item.kind for item in items]):
            entry = {"picture": self._picture(f"original_{item.picture}", split.images[item.picture])}
            if sort == "captions":
                entry |= {"caption": item.text, "expected": item.expected}
            else:
                entry |= {"question": item.question, "kind": item.kind, "answer": item.text}
                entry |= {"expected": item.expected}
            self.examples[sort].append({**entry, "right": item.right})

    def drawings(self, drawings: Sequence[Drawing], held_out: bool) -> None:
        """Pictures drawn from prompts."""
        for number, drawing in enumerate(self._spread(drawings, [item.prompt.kind for item in drawings])):
            judgement = drawing.judgement
            name = f"drawing_{'held_out_' if held_out else ''}{number}"
            self.examples["drawings"].append(
                {
                    "prompt": drawing.prompt.prompt,
                    "kind": drawing.prompt.kind,
                    "picture": self._picture(name, drawing.picture),
                    "right": list(judgement.right),
                    "picture_right": judgement.scene_right if drawing.prompt.exact else all(judgement.right),
                    "reading": described(drawing.reading),
                    "held_out": held_out,
                }
            )

    def strips(self, sort: str, strips: Sequence[Strip], held_out: bool) -> None:
        """Rows of pictures; sort: "videos", "edits", "shots", "stories". Drawn videos become GIF and mp4 files, too."""
        for number, strip in enumerate(self._spread(strips, [strip.kind for strip in strips])):
            name = f"{sort}_{'held_out_' if held_out else ''}{number}"
            if strip.moving:
                write_gif(self.directory / "pictures" / f"{name}.gif", strip.pictures)
                write_mp4(self.directory / "pictures" / f"{name}.mp4", strip.pictures)
            self.examples[sort].append(
                {
                    "pictures": [self._picture(f"{name}_{i}", one) for i, one in enumerate(strip.pictures)],
                    "labels": list(strip.labels),
                    "kind": strip.kind,
                    "text": strip.text,
                    "outcome": strip.outcome,
                    "right": strip.right,
                    "held_out": held_out,
                }
            )

    def finish(self) -> None:
        """Write examples.json."""
        (self.directory / "examples.json").write_text(json.dumps(self.examples, indent=1), encoding="utf-8")

    def _spread(self, items: Sequence[Item], kinds: Sequence[str]) -> list[Item]:
        """The first items of each kind, equally many of each, `count` in all."""
        by_kind: dict[str, list[Item]] = defaultdict(list)
        for item, kind in zip(items, kinds, strict=True):
            by_kind[kind].append(item)
        share = max(1, self.count // max(len(by_kind), 1))
        return [item for kind in sorted(by_kind) for item in by_kind[kind][:share]]

    def _picture(self, name: str, image: npt.NDArray[np.uint8]) -> str:
        path = f"pictures/{name}.png"
        if not (self.directory / path).exists():
            Image.fromarray(image).save(self.directory / path)
        return path


def described(scene: Scene) -> str:
    """A reading in words."""
    items = [" ".join(w for w in (o.size, o.colour, o.shape) if w) for o in scene.description()]
    places = [f" at the {o.place}" if o.place else "" for o in scene.description()]
    return ", ".join(item + place for item, place in zip(items, places, strict=True)) or "nothing"
