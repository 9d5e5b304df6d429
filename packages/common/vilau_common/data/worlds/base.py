"""What a world is: splits of samples, a verifier that reads pictures, and a judge of what was asked for."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

from vilau_common.data.sources.base import SourceConfig
from vilau_common.data.worlds.scene import (
    UNREADABLE,
    DrawingPrompt,
    Judgement,
    Requirement,
    Scene,
    SceneObject,
    WorldDocument,
    WorldSample,
)
from vilau_common.errors import UserError

MAX_READ_OBJECTS = 9
"""More read objects than this are not matched one by one: the surplus counts as extra all the same."""


@dataclass(kw_only=True)
class WorldConfig(SourceConfig):
    """What every world is configured by."""

    image_size: int = 32  # pixels a side; pictures are square


class World(ABC):
    """A source of pictures with known content."""

    name: str
    image_size: int

    @abstractmethod
    def splits(self) -> dict[str, Callable[[], Iterator[WorldSample]]]:
        """Split name -> function that starts a fresh, deterministic pass over it ("train", "test", ...)."""

    @abstractmethod
    def size_of(self, split: str) -> int:
        """The number of samples of a split."""

    def documents(self) -> dict[str, tuple[int, Callable[[], Iterator[WorldDocument]]]]:
        """Documents of several pictures: "<kind>/<split>" -> their number, and what starts a fresh pass over them."""
        return {}

    @abstractmethod
    def read(self, images: npt.NDArray[np.uint8]) -> list[Scene]:
        """The verifier: read pictures uint8 [B, H, W, 3] of the world's image size back into scenes.

        No trained weight is involved. What is there but cannot be told for sure is an object with shape and
        colour `UNREADABLE`.
        """

    @abstractmethod
    def substitutions(self, caption: str) -> list[str]:
        """The caption with one attribute word of one object replaced, in every way, whether true or false."""

    @abstractmethod
    def false_of(self, caption: str, scene: Scene | None) -> bool:
        """Whether a caption made by `substitutions` from a true one is one of this world and false of the scene."""

    def hard_negatives(
        self, scene: Scene | None, caption: str, limit: int | None = None, rng: random.Random | None = None
    ) -> list[str]:
        """The caption's own wording with exactly one attribute of one object changed; each false of the scene.

        scene: None where the source does not tell all of it. limit: that many of them, at random by `rng`.
        """
        changed = self.substitutions(caption)
        if rng is not None:
            rng.shuffle(changed)
        result: list[str] = []
        for candidate in changed:
            if limit is not None and len(result) == limit:
                break
            if self.false_of(candidate, scene):
                result.append(candidate)
        return result

    @abstractmethod
    def drawing_prompts(self, scenes: Sequence[Scene], seed: int, count: int) -> list[DrawingPrompt]:
        """`count` prompts in all, the kinds in turn, each true of one of the scenes."""

    @abstractmethod
    def parse_caption(self, caption: str) -> Scene | None:
        """The scene that a full caption describes, None if it is not a full caption of this world."""

    @abstractmethod
    def kinds_of_objects(self) -> list[str]:
        """All "colour shape" that an object can be: the classes of zero-shot classification."""

    def kind_of(self, scene: Scene) -> str | None:
        """The kind of a scene's only object; None where there are several."""
        if len(scene.objects) != 1:
            return None
        return f"{scene.objects[0].colour} {scene.objects[0].shape}"

    def relation_holds(self, relation: str, first: SceneObject, second: SceneObject) -> bool:
        """Whether `first` is <relation> `second`; worlds without places know no relation."""
        raise NotImplementedError(f"the world {self.name} knows no relation {relation!r}")

    def same(self, reading: Scene, truth: Scene) -> bool:
        """Whether a reading has exactly the objects of the truth."""
        return Counter(reading.objects) == Counter(truth.objects)

    def caption_right(self, caption: str, truth: Scene) -> bool:
        """Whether a (generated) full caption says exactly what the picture shows."""
        described = self.parse_caption(caption)
        return described is not None and self.same(described, truth)

    def judge(self, prompt: DrawingPrompt, reading: Scene) -> Judgement:
        """Match required to read objects one to one, as favourably as possible.

        For prompts of kind "counting" each object too many makes one of the right ones wrong: four circles
        are as far from three as two are.
        """
        required, read = prompt.objects, reading.objects[:MAX_READ_OBJECTS]
        seats: list[SceneObject | None] = [*read, *([None] * len(required))]
        right: tuple[bool, ...] = (False,) * len(required)
        for chosen in permutations(seats, len(required)):
            candidate = self._right(required, chosen)
            if sum(candidate) > sum(right):
                right = candidate
            if all(right):
                break
        extra = max(0, len(reading.objects) - len(required))
        scene_right = all(right) and extra == 0
        if prompt.kind == "counting" and extra:
            kept = max(0, sum(right) - extra)
            right = tuple(index < kept for index in range(len(required)))
        return Judgement(right=right, extra=extra, scene_right=scene_right)

    def true_of(self, required: tuple[Requirement, ...], scene: Scene) -> bool:
        """Whether the scene shows exactly the required objects and nothing else."""
        return self.judge(DrawingPrompt("", "scene", required, exact=True), scene).scene_right

    def check_images(self, images: npt.NDArray[np.uint8]) -> None:
        """Raise a UserError unless images are uint8 [B, image_size, image_size, 3]."""
        expected = (self.image_size, self.image_size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise UserError(
                f"the world {self.name} reads uint8 images [B, {self.image_size}, {self.image_size}, 3], "
                f"not {images.dtype} {list(images.shape)}"
            )

    def _right(
        self, required: tuple[Requirement, ...], chosen: tuple[SceneObject | None, ...]
    ) -> tuple[bool, ...]:
        """Which requirements hold when required object i is taken to be chosen[i]."""
        result = []
        for requirement, item in zip(required, chosen, strict=True):
            fits = item is not None and requirement.admits(item)
            if fits and requirement.relation is not None and requirement.other is not None:
                other = chosen[requirement.other]
                fits = (
                    item is not None
                    and other is not None
                    and UNREADABLE not in (other.shape, other.colour)
                    and self.relation_holds(requirement.relation, item, other)
                )
            result.append(fits)
        return tuple(result)
