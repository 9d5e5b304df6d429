"""The scenes world put together: samples, hard negatives, drawing prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from vilau_common.data.worlds.base import World
from vilau_common.data.worlds.scene import DrawingPrompt, Scene, SceneObject, WorldDocument, WorldSample
from vilau_common.data.worlds.scenes import words
from vilau_common.data.worlds.scenes.captions import (
    KINDS,
    captions,
    full_caption,
    kind_applies,
    partial_caption,
)
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.documents import documents
from vilau_common.data.worlds.scenes.drawing import Placement, draw
from vilau_common.data.worlds.scenes.grammar import parse, parse_full, substitutions
from vilau_common.data.worlds.scenes.questions import TRAINING_RELATIONS, questions
from vilau_common.data.worlds.scenes.splits import HELD_OUT, TEST, TRAIN, sample_placement, sample_scene
from vilau_common.data.worlds.scenes.statements import statements
from vilau_common.data.worlds.scenes.verifier import ScenesVerifier

DRAWN_AT_ONCE = 256  # pictures; larger batches do not draw faster
SCENE = "scene"


class ScenesWorld(World):
    """One to three coloured shapes at nine places; see `ScenesConfig`."""

    name = "scenes"

    def __init__(self, config: ScenesConfig) -> None:
        """Raises UserError if the configuration is out of range."""
        config.check()
        self.config = config
        self.image_size = config.image_size
        self._held_out = config.pairs()
        self._verifier = ScenesVerifier(config.image_size)

    def splits(self) -> dict[str, Callable[[], Iterator[WorldSample]]]:
        """train, test and test_held_out (scenes with a combination never seen in the other two)."""
        names = (TRAIN, TEST, HELD_OUT) if self.config.held_out_count > 0 else (TRAIN, TEST)
        return {split: partial(self._samples, split, self.size_of(split)) for split in names}

    def size_of(self, split: str) -> int:
        """As configured."""
        counts = {
            TRAIN: self.config.train_count,
            TEST: self.config.test_count,
            HELD_OUT: self.config.held_out_count,
        }
        return counts[split]

    def documents(self) -> dict[str, tuple[int, Callable[[], Iterator[WorldDocument]]]]:
        """Videos, edits, shots and stories, as many as are configured, each in train, test and test_held_out."""
        return documents(self.config, self._held_out)

    def read(self, images: npt.NDArray[np.uint8]) -> list[Scene]:
        """See `ScenesVerifier.read`. Raises UserError for pictures of another size or type."""
        self.check_images(images)
        return self._verifier.read(images)

    def relation_holds(self, relation: str, first: SceneObject, second: SceneObject) -> bool:
        """Whether `first` is left of, right of, above or below `second`."""
        return words.relation_holds(relation, first, second)

    def parse_caption(self, caption: str) -> Scene | None:
        """The scene of a full caption in any of the wordings."""
        return parse_full(caption)

    def kinds_of_objects(self) -> list[str]:
        """Held-out combinations included."""
        return [f"{colour} {shape}" for colour in words.COLOURS for shape in words.SHAPES]

    def substitutions(self, caption: str) -> list[str]:
        """One shape, colour, size or place word changed."""
        return list(substitutions(caption))

    def false_of(self, caption: str, scene: Scene | None) -> bool:
        """Full captions must also describe a possible scene (no two objects at one place).

        A held-out combination that the picture does not show is never named: to call it false in training would
        teach that it does not exist.
        """
        assert scene is not None, "scenes are always known here"
        required = parse(caption)
        if required is None:
            return False
        shown = {(item.colour, item.shape) for item in scene.objects}
        if any((item.colour, item.shape) in self._held_out - shown for item in required):
            return False
        if all(None not in (item.shape, item.colour, item.size, item.place) for item in required):
            described = parse_full(caption)
            return described is not None and not self.same(described, scene)
        return not self.true_of(required, scene)

    def drawing_prompts(self, scenes: Sequence[Scene], seed: int, count: int) -> list[DrawingPrompt]:
        """`count` prompts in all: "scene" (everything said, exact) and GenEval's six kinds in turn.

        Kinds that apply to none of the scenes are left out; a prompt comes twice only where the scenes
        give too few different ones of its kind.
        """
        rng = random.Random(f"{self.name}/prompts/{seed}")
        pools: list[list[DrawingPrompt]] = []
        for kind in (SCENE, *KINDS):
            pool = self._prompt_pool(kind, scenes, rng, -(-count // (len(KINDS) + 1)))
            if pool:
                pools.append(pool)
        if not pools:
            return []
        return [pools[i % len(pools)][(i // len(pools)) % len(pools[i % len(pools)])] for i in range(count)]

    def _prompt_pool(
        self, kind: str, scenes: Sequence[Scene], rng: random.Random, wanted: int
    ) -> list[DrawingPrompt]:
        """Up to `wanted` different prompts of one kind."""
        fitting = [scene for scene in scenes if kind == SCENE or kind_applies(kind, scene)]
        rng.shuffle(fitting)
        found: dict[str, DrawingPrompt] = {}
        for scene in fitting:
            text = full_caption(scene, rng) if kind == SCENE else partial_caption(kind, scene, rng)
            required = parse(text)
            assert required is not None
            found.setdefault(text, DrawingPrompt(text, kind, required, exact=kind == SCENE))
            if len(found) == wanted:
                break
        return list(found.values())

    def _samples(self, split: str, count: int) -> Iterator[WorldSample]:
        """Samples 0..count-1; each depends on seed, split and its index alone."""
        avoided = self._held_out if split != HELD_OUT else frozenset()
        more_relations = TRAINING_RELATIONS if split == TRAIN else 0
        for start in range(0, count, DRAWN_AT_ONCE):
            indices = range(start, min(start + DRAWN_AT_ONCE, count))
            sources = [random.Random(f"{self.name}/{self.config.seed}/{split}/{index}") for index in indices]
            scenes = [sample_scene(rng, split, self.config, self._held_out) for rng in sources]
            placements: list[list[Placement]] = [
                [sample_placement(rng, self.config) for _ in scene.objects]
                for rng, scene in zip(sources, scenes, strict=True)
            ]
            images = draw(scenes, placements, self.image_size)
            for index, rng, scene, image in zip(indices, sources, scenes, images, strict=True):
                yield WorldSample(
                    key=f"{split}_{index:06d}",
                    image=image,
                    captions=captions(scene, rng),
                    questions=questions(scene, rng, avoided, more_relations),
                    scene=scene,
                    texts=statements(rng, avoided),
                    description=full_caption(scene, rng, in_reading_order=True),
                )
