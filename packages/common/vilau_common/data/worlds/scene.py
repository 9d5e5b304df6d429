"""What a picture shows, and what may be asked of it: plain records shared by all worlds.

An attribute that a world does not have, or that a prompt leaves open, is None.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UNREADABLE = "unreadable"
"""Shape or colour of a read object that is clearly there but is none of the world's: it equals no truth."""


@dataclass(frozen=True, order=True)
class SceneObject:
    """One object of a picture, in the world's own words."""

    shape: str
    colour: str
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Scene:
    """All objects of a picture; their order means nothing."""

    objects: tuple[SceneObject, ...]

    def description(self) -> tuple[SceneObject, ...]:
        """The objects in canonical order: equal for scenes that show the same."""
        return tuple(sorted(self.objects, key=lambda o: (o.place or "", o.shape, o.colour, o.size or "")))

    def to_json(self) -> dict[str, Any]:
        """A plain structure that `json.dumps` takes and `from_json` reads back."""
        return {"objects": [asdict(item) for item in self.objects]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Scene:
        """The scene that `to_json` wrote. Raises KeyError or TypeError on anything else."""
        return cls(tuple(SceneObject(**item) for item in value["objects"]))


@dataclass(frozen=True)
class Question:
    """A question about one picture with its one right answer; `kind` groups results."""

    question: str
    answer: str
    kind: str


@dataclass
class WorldSample:
    """One picture and everything said about it."""

    key: str  # unique within the split; no dots (WebDataset splits names at the first one)
    image: npt.NDArray[np.uint8]  # [H, W, 3]
    captions: list[str]  # [0] says everything that is known of the picture; the others may say less
    questions: list[Question]
    scene: Scene | None  # None where the source does not tell all of it
    texts: list[str]  # statements that need no picture
    # What those learn to say who describe pictures, where it differs from the first caption: its order holds
    # nothing to guess. It is no caption, since whoever reads captions must understand every order.
    description: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but key and image: the `.json` member of a sample in a shard."""
        return {
            "captions": list(self.captions),
            "questions": [asdict(question) for question in self.questions],
            "scene": None if self.scene is None else self.scene.to_json(),
            "texts": list(self.texts),
            **({} if self.description is None else {"description": self.description}),
        }


@dataclass
class WorldDocument:
    """Several pictures that belong together, and what is said with them (docs/data.md lists the record's entries)."""

    key: str  # unique within the split; no dots
    images: npt.NDArray[np.uint8]  # [N, H, W, 3]
    record: dict[str, Any]  # JSON values


@dataclass(frozen=True)
class Requirement:
    """One object that a prompt asks for; None leaves an attribute open.

    `relation` ("left of", ...) holds between this object and the required object with index `other`.
    """

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    place: str | None = None
    relation: str | None = None
    other: int | None = None

    def admits(self, item: SceneObject) -> bool:
        """Whether the object has every attribute asked for (the relation apart)."""
        return (
            self.shape in (None, item.shape)
            and self.colour in (None, item.colour)
            and self.size in (None, item.size)
            and self.place in (None, item.place)
            and UNREADABLE not in (item.shape, item.colour)
        )


@dataclass(frozen=True)
class DrawingPrompt:
    """A prompt and what a picture drawn from it must show."""

    prompt: str
    kind: str
    objects: tuple[Requirement, ...]
    exact: bool  # the prompt says everything: "every object right, none extra" is judged


@dataclass(frozen=True)
class Judgement:
    """How far a reading fulfils a prompt."""

    right: tuple[bool, ...]  # one for each required object
    extra: int  # objects read beyond the number required
    scene_right: bool  # every required object right, none extra
