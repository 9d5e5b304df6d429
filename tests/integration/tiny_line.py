"""A tiny world on disk and the command line that trains on it; shared by the integration tests."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CHECKPOINT_EVERY = 3
# Enough that a signal sent at the first checkpoint comes long before the end.
STEPS = 80

TINY_CLIP = [
    "data.image_size=24",
    "data.loader.batch_size=8",
    "data.loader.shuffle_buffer=16",
    "clip.patch_size=8",
    "clip.image={width: 16, layers: 2, heads: 2}",
    "clip.text={width: 16, layers: 1, heads: 2}",
]
TINY_TOWER = [
    "data.image_size=24",
    "data.loader.batch_size=8",
    "data.loader.shuffle_buffer=16",
    "tower.quantizer={codebook_size: 16, depth: 2, code_dim: 8}",
    "tower.decoder={width: 16, layers: 1, heads: 2}",
]
TINY_LM = [
    "data.loader.batch_size=2",
    "data.loader.shuffle_buffer=16",
    "data.loader.packing_buffer=16",
    "data.row_length=192",
    "lm.backbone={width: 16, layers: 1, heads: 2, key_value_heads: 2, mlp_width: 32, context: 192}",
    "lm.depth={width: 16, layers: 1, heads: 2}",
]


def schedule(steps: int) -> list[str]:
    """A short training with checkpoints."""
    return [
        f"training.steps={steps}",
        "training.schedule.warmup_steps=1",
        "training.log_every=1",
        f"training.checkpoint_every={CHECKPOINT_EVERY}",
    ]


@dataclass
class Line:
    """Prepared data and trained parts, each in its place below `root`."""

    root: Path

    def arguments(self, verb: str, directory: Path, steps: int = STEPS) -> list[str]:
        """The command line of one stage at toy size, its run in `directory`."""
        data, clip, tower = self.root / "data", self.root / "clip", self.root / "tower"
        codes = self.root / "codes"
        return [
            verb,
            f"directory={directory}",
            *{
                "train-clip": [f"data.directory={data}", *TINY_CLIP, *schedule(steps)],
                "train-tower": [
                    f"data.directory={data}",
                    f"tower.clip.pretrained={clip}",
                    *TINY_TOWER,
                    *schedule(steps),
                ],
                "tokenize": [f"tower_directory={tower}", f"data={data}"],
                "train-lm": [
                    f"data.directory={codes}",
                    f"lm.tower={tower}",
                    f"lm.text_tokenizer={data}/tokenizer",
                    *TINY_LM,
                    *schedule(steps),
                ],
            }[verb],
        ]


def vilau(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), timeout=300)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vilau_unified_lm.cli", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
