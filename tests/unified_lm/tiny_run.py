"""`vilau train-lm` at toy size: what the stages before it leave, its configuration, and what it leaves itself."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_lm import CAPTIONS, IMAGE_SIZE, QUESTIONS, lm_config, make_tower
from torch import Tensor

from vilau_common.data.loader import LoaderConfig
from vilau_common.data.shards import ShardWriter
from vilau_common.data.text_tokenizer import train_text_tokenizer
from vilau_common.training import OptimizerConfig, TrainingConfig
from vilau_unified_lm.data import DocumentDataConfig, MixtureConfig
from vilau_unified_lm.losses import LossConfig
from vilau_unified_lm.train import TrainLmConfig
from vilau_vision_tower.tokenize import TokenizeConfig, tokenize

STEPS = 4


def make_ready(directory: Path) -> Path:
    """tower/, tokenizer/ and codes/ as the stages before the LM leave them."""
    torch.manual_seed(0)
    make_tower().save_pretrained(directory / "tower" / "model")
    train_text_tokenizer(CAPTIONS, directory / "tokenizer", vocabulary_size=300)
    rng = np.random.default_rng(0)
    with ShardWriter(directory / "data" / "train", {}, samples_per_shard=20) as writer:
        for number in range(40):
            file = io.BytesIO()
            Image.fromarray(rng.integers(256, size=(IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)).save(
                file, "PNG"
            )
            record = {"captions": CAPTIONS, "questions": QUESTIONS, "scene": None, "texts": CAPTIONS}
            writer.write(f"{number:04d}", {"png": file.getvalue(), "json": json.dumps(record).encode()})
    tokenize(
        TokenizeConfig(
            tower_directory=str(directory / "tower"),
            data=str(directory / "data"),
            directory=str(directory / "codes"),
        )
    )
    return directory


def config_for(ready: Path, run: Path, **training: Any) -> TrainLmConfig:
    """All of the state in play: packing buffer, dropout, a share of positions, averaged weights, accumulation."""
    settings: dict[str, Any] = {
        "steps": STEPS,
        "accumulation": 2,
        "log_every": 1,
        "checkpoint_every": 10,
        "ema_decay": 0.9,
        "optimizer": OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.1),
    }
    return TrainLmConfig(
        directory=str(run),
        data=DocumentDataConfig(
            directory=str(ready / "codes"),
            mixture=MixtureConfig(),
            row_length=80,
            loader=LoaderConfig(batch_size=2, workers=0, shuffle_buffer=20, packing_buffer=15),
        ),
        lm=lm_config(str(ready / "tower"), str(ready / "tokenizer")),
        loss=LossConfig(depth_share=0.5),
        training=TrainingConfig(**{**settings, **training}),
    )


@dataclass
class EndState:
    """What a run leaves behind."""

    metrics: list[dict[str, Any]]  # without times
    weights: dict[str, Tensor]  # of the model
    checkpoint: dict[str, Tensor]

    @staticmethod
    def of(run: Path) -> EndState:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return EndState(
            [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines],
            load_file(run / "model" / "model.safetensors"),
            load_file(run / "checkpoints" / f"step_{STEPS:06d}" / "weights.safetensors"),
        )
