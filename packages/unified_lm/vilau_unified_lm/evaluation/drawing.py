"""Drawings of a unified LM, read back by the world's verifier and judged against their prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vilau_common.data.worlds.base import World
from vilau_common.data.worlds.scene import DrawingPrompt, Judgement, Scene
from vilau_common.training.progress import TrainingProgress
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import Session

BATCH = 128


@dataclass
class Drawing:
    prompt: DrawingPrompt
    picture: npt.NDArray[np.uint8]  # [H, W, 3]
    reading: Scene
    judgement: Judgement


def draw_prompts(
    session: Session, prompts: Sequence[DrawingPrompt], sampling: Sampling, seed: int, world: World
) -> list[Drawing]:
    """One picture a prompt; picture i is drawn with the seed `seed + i`."""
    drawings: list[Drawing] = []
    with TrainingProgress("evaluate drawings", len(prompts), "pictures", visible=True) as progress:
        for start in range(0, len(prompts), BATCH):
            chosen = prompts[start : start + BATCH]
            seeds = [seed + start + index for index in range(len(chosen))]
            pictures = session.draw([prompt.prompt for prompt in chosen], sampling, seeds)
            for prompt, picture, reading in zip(chosen, pictures, world.read(pictures), strict=True):
                drawings.append(Drawing(prompt, picture, reading, world.judge(prompt, reading)))
            progress.advance(len(drawings), len(chosen), None)
    return drawings


def drawing_metrics(drawings: Sequence[Drawing]) -> dict[str, float]:
    """draw_object_accuracy: share of the objects asked for that are right, over all prompts and by kind;
    draw_scene_accuracy: share of exact prompts with every object right and none extra."""
    right: dict[str, list[bool]] = defaultdict(list)
    for drawing in drawings:
        for name in ("draw_object_accuracy", f"draw_object_accuracy/{drawing.prompt.kind}"):
            right[name].extend(drawing.judgement.right)
        if drawing.prompt.exact:
            right["draw_scene_accuracy"].append(drawing.judgement.scene_right)
    return {name: float(np.mean(values)) for name, values in sorted(right.items())}
