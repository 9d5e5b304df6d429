"""The easy_vqa world put together: samples, hard negatives, drawing prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from vilau_common.data.worlds.base import World
from vilau_common.data.worlds.easy_vqa import language
from vilau_common.data.worlds.easy_vqa.config import EasyVqaConfig
from vilau_common.data.worlds.easy_vqa.source import pictures
from vilau_common.data.worlds.easy_vqa.verifier import EasyVqaVerifier
from vilau_common.data.worlds.scene import DrawingPrompt, Scene, SceneObject, WorldSample

PROMPT_KIND = "colours"  # GenEval's name for one object of one colour


class EasyVqaWorld(World):
    """The pictures of `easy-vqa`, with scenes and captions derived from its question-answer pairs.

    A sample's `scene` is None where the pairs do not tell both shape and colour (about one in nine).
    """

    name = "easy_vqa"

    def __init__(self, config: EasyVqaConfig) -> None:
        """Raises UserError for settings out of range; a missing package shows when a split is read."""
        config.check()
        self.config = config
        self.image_size = config.image_size
        self._verifier = EasyVqaVerifier(config.image_size)

    def splits(self) -> dict[str, Callable[[], Iterator[WorldSample]]]:
        """The package's own train (4,000 pictures) and test (1,000)."""
        return {split: partial(self._samples, split, self._limit(split)) for split in ("train", "test")}

    def size_of(self, split: str) -> int:
        """As many as the package has, or the configured limit."""
        return len(pictures(split)[: self._limit(split)])

    def _limit(self, split: str) -> int | None:
        return self.config.train_limit if split == "train" else self.config.test_limit

    def read(self, images: npt.NDArray[np.uint8]) -> list[Scene]:
        """See `EasyVqaVerifier.read`. Raises UserError for pictures of another size or type."""
        self.check_images(images)
        return self._verifier.read(images)

    def parse_caption(self, caption: str) -> Scene | None:
        """The scene of a caption that gives shape and colour, in any of the wordings."""
        return language.parse_full(caption)

    def kinds_of_objects(self) -> list[str]:
        """All 24."""
        return [f"{colour} {shape}" for colour in language.COLOURS for shape in language.SHAPES]

    def substitutions(self, caption: str) -> list[str]:
        """Another colour (7) or another shape (2)."""
        return list(language.substitutions(caption))

    def false_of(self, caption: str, scene: Scene | None) -> bool:
        """A picture has one shape of one colour, so that every other one is false of it."""
        said = language.parse(caption)
        return said is not None and (scene is None or not self.true_of((said,), scene))

    def drawing_prompts(self, scenes: Sequence[Scene], seed: int, count: int) -> list[DrawingPrompt]:
        """`count` exact prompts of the kind "colours", the scenes in random order, again and again.

        There are only 24 different scenes, so prompts do repeat.
        """
        rng = random.Random(f"{self.name}/prompts/{seed}")
        order = [scene for scene in scenes if scene.objects]
        rng.shuffle(order)
        result = []
        for index in range(count if order else 0):
            (item,) = order[index % len(order)].objects
            text = rng.choice(language.captions(item.shape, item.colour, rng))
            said = language.parse(text)
            assert said is not None
            result.append(DrawingPrompt(text, PROMPT_KIND, (said,), exact=True))
        return result

    def _samples(self, split: str, limit: int | None) -> Iterator[WorldSample]:
        """Samples in the package's order; each depends on its split and identifier alone."""
        for picture in pictures(split)[:limit]:
            rng = random.Random(f"{self.name}/{split}/{picture.identifier}")
            shape, colour = language.derive_facts(picture.pairs)
            known = shape is not None and colour is not None
            yield WorldSample(
                key=f"{split}_{picture.identifier:06d}",
                image=picture.load(self.image_size),
                captions=language.captions(shape, colour, rng),
                questions=language.questions(picture.pairs),
                scene=Scene((SceneObject(str(shape), str(colour)),)) if known else None,
                texts=language.statements(rng),
            )
