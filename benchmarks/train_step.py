"""One training step of the demo's LM (forward and backward pass) at two precisions of float32 matrix products.

    make bench BENCH=train_step

Reference: matmul_precision=highest, torch's default. Beside the ratio stands the floor: the step's products at the
speed that one large product reaches at the same precision.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from vilau_common.training import TrainingConfig
from vilau_common.training.environment import torch_settings
from vilau_unified_lm.config import DepthConfig
from vilau_unified_lm.document import Document, ImageSegment, TextSegment
from vilau_unified_lm.packing import MixedSequence, pack
from vilau_unified_lm.train import BackboneConfig, LmConfig, build_lm
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.tower import VisionTower

# As conf/experiment/scenes/lm.yaml has them.
ROWS, LENGTH, POSITIONS, DEPTH, CODES, WORDS = 16, 128, 9, 2, 256, 475
CAPTION = 10  # tokens
ROUNDS = 15


def batch() -> MixedSequence:
    """Rows full of drawings with captions."""
    rng = np.random.default_rng(0)

    def document() -> Document:
        caption = TextSegment(tuple(rng.integers(10, WORDS, CAPTION).tolist()), supervised=False)
        picture = ImageSegment(rng.integers(CODES, size=(POSITIONS, DEPTH)), supervised=True)
        return Document((caption, picture, TextSegment((1, 2), supervised=True)))

    count = LENGTH // len(document())
    return pack([[document() for _ in range(count)] for _ in range(ROWS)], LENGTH, DEPTH)


def model() -> torch.nn.Module:
    """The demo's LM with random weights."""
    vision = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower = VisionTower(
        VisionTowerConfig(
            vision_config={**vision, "image_size": 36, "patch_size": 12},
            quantizer={"codebook_size": CODES, "depth": DEPTH, "code_dim": 32},
            decoder={"kind": "transformer", "width": 32, "layers": 1, "heads": 4},
        )
    )
    config = LmConfig(
        tower="",
        text_tokenizer="",
        backbone=BackboneConfig(
            width=128, layers=4, heads=8, key_value_heads=8, mlp_width=384, context=LENGTH
        ),
        depth=DepthConfig(width=128, layers=2, heads=4, dropout=0.0),
        grid_positions=True,
    )
    vocabulary = Vocabulary(
        text_size=WORDS,
        codebook_size=CODES,
        depth=DEPTH,
        begin=1,
        end=2,
        pad=0,
        image_start=3,
        image_end=4,
        video_start=5,
        video_end=6,
    )
    return build_lm(config, tower, vocabulary).train()


def seconds(function: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Measure both by turns, so that a noisy machine disturbs them alike, and print medians."""
    lm, sequence = model(), batch()
    side = torch.randn(2048, 2048)

    def step() -> None:
        lm(sequence).loss.total.backward()

    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
    steps: dict[str, list[float]] = {"highest": [], "medium": []}
    products: dict[str, list[float]] = {"highest": [], "medium": []}
    for round_ in range(ROUNDS + 2):
        for precision in steps:
            with torch_settings(TrainingConfig(steps=1, matmul_precision=precision)):
                times = seconds(step), seconds(lambda: side @ side)
            if round_ >= 2:  # the first ones warm up
                steps[precision].append(times[0])
                products[precision].append(times[1])
    print(f"{torch.get_num_threads()} threads, {flops / 1e9:.1f} GFLOP a step")
    reference = statistics.median(steps["highest"])
    for precision in steps:
        taken = statistics.median(steps[precision])
        floor = flops / (2 * len(side) ** 3 / statistics.median(products[precision]))
        print(
            f"{precision:8} {taken * 1e3:6.1f} ms, {taken / reference:.2f} of highest; floor {floor * 1e3:.1f} ms"
        )


if __name__ == "__main__":
    main()
