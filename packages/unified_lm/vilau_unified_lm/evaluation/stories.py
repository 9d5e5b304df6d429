"""Stories: from a told scene on, the model draws it, writes what to change, draws that, and so on by itself.

lm/story_text_accuracy      texts that the model wrote of which each is an instruction that fits the scene told so far
lm/story_picture_accuracy   pictures, as many as a story has, that show what the texts up to them tell
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vilau_common.data.conversation import IMAGE
from vilau_common.data.fields import INTERLEAVED
from vilau_common.data.worlds.base import World
from vilau_common.data.worlds.scene import WorldDocument
from vilau_common.data.worlds.scenes.stories import CHANGES, scenes_told
from vilau_common.pictures import Picture
from vilau_unified_lm.evaluation.batches import batches, means
from vilau_unified_lm.evaluation.examples import Strip
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import Session

# Longer than any instruction in tokens.
LONGEST_TEXT = 16
PICTURES = 1 + CHANGES


def evaluate_stories(
    session: Session, world: World, documents: Sequence[WorldDocument], sampling: Sampling, seed: int
) -> tuple[dict[str, float], list[Strip]]:
    """The numbers above. Story i has the seed `seed + i`; texts are sampled, pictures drawn without guidance."""
    builder, plain = session.builder, replace(sampling, guidance=1.0)
    height, width = session.image_tokenizer.grid
    positions = PICTURES * (height * width + 2 + LONGEST_TEXT)
    flags: list[tuple[str, bool]] = []
    strips: list[Strip] = []
    beginnings = [document.record[INTERLEAVED].partition(IMAGE)[0].strip() for document in documents]
    for start, chosen in batches(beginnings, "stories", "stories"):
        prompts = [builder.interleaved_prompt(text, []) for text in chosen]
        seeds = [seed + start + number for number in range(len(chosen))]
        told = session.generate(prompts, positions, plain, seeds, text=replace(plain, temperature=1.0))
        for beginning, parts in zip(chosen, told, strict=True):
            texts, pictures = _by_turns(beginning, parts)
            expected = scenes_told(texts)
            readings = world.read(np.stack(pictures)) if pictures else []
            shown = [
                scene is not None and world.same(reading, scene)
                for scene, reading in zip(expected, readings, strict=False)
            ]
            shown += [False] * (PICTURES - len(shown))
            flags += [("lm/story_text_accuracy", scene is not None) for scene in expected[1:PICTURES]]
            flags += [("lm/story_picture_accuracy", right) for right in shown]
            strips.append(
                Strip(
                    kind="story",
                    pictures=pictures,
                    labels=texts[: len(pictures)],
                    text=beginning,
                    outcome=" / ".join(texts[1:]),
                    right=all(shown),
                )
            )
    return means(flags), strips


def _by_turns(beginning: str, parts: Sequence[str | Picture]) -> tuple[list[str], list[Picture]]:
    """Texts, each with the picture behind it, up to where they no longer alternate; at most as a story has."""
    texts, pictures = [beginning], list[Picture]()
    for part in parts:
        if isinstance(part, str) and len(texts) == len(pictures):
            texts.append(part)
        elif not isinstance(part, str) and part.ndim == 3 and len(pictures) < len(texts):
            pictures.append(part)
        else:
            break
    return texts[:PICTURES], pictures[:PICTURES]
