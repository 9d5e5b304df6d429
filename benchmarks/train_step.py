"""One training step of the demo's LM (forward and backward pass) with two settings of training.matmul_precision.

    make bench BENCH=train_step

Reference: highest, torch's default. On a CPU medium takes oneDNN's products and attention without flash kernels.
Beside the ratio stands the floor: the step's products at the speed that one large product reaches in that setting.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from vilau_common.config import load_config
from vilau_common.training import TrainingConfig
from vilau_common.training.environment import torch_settings
from vilau_unified_lm.build import build_lm
from vilau_unified_lm.document import Document, ImageSegment, TextSegment
from vilau_unified_lm.packing import MixedSequence, pack
from vilau_unified_lm.train import SCHEMA_GROUPS as LM_GROUPS
from vilau_unified_lm.train import TrainLmConfig
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.tower import VisionTower
from vilau_vision_tower.train import SCHEMA_GROUPS, TrainTowerConfig
from vilau_vision_tower.train_clip import TrainClipConfig

CAPTION = 10  # tokens
WORDS = 475  # in the text vocabulary, specials included
ROUNDS = 15


def batch(config: TrainLmConfig, tower: VisionTower) -> MixedSequence:
    """Rows full of drawings with captions."""
    rng = np.random.default_rng(0)
    positions, length = tower.grid[0] * tower.grid[1], config.data.row_length

    def document() -> Document:
        caption = TextSegment(tuple(rng.integers(10, WORDS, CAPTION).tolist()), supervised=False)
        picture = ImageSegment(
            rng.integers(tower.codebook_size, size=(positions, tower.depth)), supervised=True
        )
        return Document((caption, picture, TextSegment((1, 2), supervised=True)))

    count, rows = length // len(document()), config.data.loader.batch_size
    return pack([[document() for _ in range(count)] for _ in range(rows)], length, tower.depth)


def random_tower() -> VisionTower:
    """A tower of the demo's grid and codes."""
    vision = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = load_config("train_tower", ["experiment=scenes/tower"], TrainTowerConfig, groups=SCHEMA_GROUPS)
    clip = load_config("train_clip", ["experiment=scenes/clip"], TrainClipConfig)
    return VisionTower(
        VisionTowerConfig(
            vision_config={
                **vision,
                "image_size": config.data.image_size,
                "patch_size": clip.clip.patch_size,
            },
            quantizer=asdict(config.tower.quantizer),
            decoder=asdict(config.tower.decoder),
        )
    )


def seconds(function: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Measure both by turns, so that a noisy machine disturbs them alike, and print medians."""
    config, tower = (
        load_config("train_lm", ["experiment=scenes/lm"], TrainLmConfig, groups=LM_GROUPS),
        random_tower(),
    )
    sequence = batch(config, tower)
    vocabulary = Vocabulary(
        text_size=WORDS,
        codebook_size=tower.codebook_size,
        depth=tower.depth,
        begin=1,
        end=2,
        pad=0,
        image_start=3,
        image_end=4,
        video_start=5,
        video_end=6,
    )
    lm = build_lm(config.lm, tower, vocabulary).train()
    side = torch.randn(2048, 2048)

    def step() -> None:
        lm(sequence).loss.total.backward()

    setting = {name: TrainingConfig(steps=1, matmul_precision=name) for name in ("highest", "medium")}
    steps: dict[str, list[float]] = {name: [] for name in setting}
    products: dict[str, list[float]] = {name: [] for name in setting}
    flops: dict[str, int] = {}
    for precision in setting:
        with torch_settings(setting[precision]), FlopCounterMode(display=False) as counter:
            step()
        flops[precision] = counter.get_total_flops()
    for round_ in range(ROUNDS + 2):
        for precision in setting:
            with torch_settings(setting[precision]):
                times = seconds(step), seconds(lambda: side @ side)
            if round_ >= 2:  # the first ones warm up
                steps[precision].append(times[0])
                products[precision].append(times[1])
    print(f"{torch.get_num_threads()} threads")
    reference = statistics.median(steps["highest"])
    for precision in setting:
        taken = statistics.median(steps[precision])
        floor = flops[precision] / (2 * len(side) ** 3 / statistics.median(products[precision]))
        print(
            f"{precision:8} {taken * 1e3:6.1f} ms, {taken / reference:.2f} of highest; floor {floor * 1e3:.1f} ms"
        )


if __name__ == "__main__":
    main()
