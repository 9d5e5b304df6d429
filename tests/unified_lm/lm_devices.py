"""What each of two processes does in `test_lm_devices`; the test does the same in one on the joint batches.

The joint batch's rows are of equal shape on both ranks: as many text and visual targets.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny_lm import CAPTIONS, QUESTIONS, D, K, make_model, random_codes
from torch import nn
from transformers import AutoTokenizer

from vilau_common.run import RunDirectory, isolated_random
from vilau_common.training import (
    OptimizerConfig,
    ScheduleConfig,
    StepOutput,
    TrainingConfig,
    TrainingInterrupted,
    train,
)
from vilau_unified_lm.document import DocumentBuilder
from vilau_unified_lm.lora import Adapters, LoraConfig
from vilau_unified_lm.packing import MixedSequence, pack
from vilau_unified_lm.stage import PartRates, freeze
from vilau_unified_lm.task import UnifiedTask
from vilau_unified_lm.vocabulary import Vocabulary

WORLD = 2
STEPS = 6
STOP = 3
LENGTH = 160


class RowsLoader:
    """Joint batches of two equally shaped rows with codes of their own; `mine`: a rank's row; `single`: row by row.

    Like a real one's, the position is exact where as many processes go on, and anew otherwise.
    """

    def __init__(self, builder: DocumentBuilder, mine: int | None = None, single: bool = False) -> None:
        self.builder, self.mine, self.single = builder, mine, single
        self.number = 0

    def __iter__(self) -> Iterator[MixedSequence]:
        while True:
            step, row = divmod(self.number, 2) if self.single else (self.number, self.mine)
            self.number += 1
            rows = range(WORLD) if row is None else [row]
            yield pack([self.row(2 * step + row) for row in rows], LENGTH, D)

    def row(self, seed: int) -> list[Any]:
        turns = [(turn["question"], turn["answer"]) for turn in QUESTIONS]
        return [
            self.builder.text_to_image(CAPTIONS[0], random_codes(3 * seed)),
            self.builder.questions(random_codes(3 * seed + 1), turns[:2], independent=True),
            self.builder.image_to_text(random_codes(3 * seed + 2), CAPTIONS[1]),
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = 0 if self.single else state["number"]


class StoppingTask(UnifiedTask):
    """Is asked to stop in its STOP-th step."""

    def training_step(self, network: nn.Module, batch: MixedSequence, step: int) -> StepOutput:
        if step == STOP - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().training_step(network, batch, step)


def run_lm(
    path: Path,
    tokenizer: Path,
    task_class: type[UnifiedTask] = UnifiedTask,
    rank: int | None = None,
    checkpointing: bool = False,
    frozen: bool = False,
    adapted: bool = False,
    **changes: Any,
) -> None:
    """Train the tiny LM in `path`, or go on there; rank None: in one process on the joint batch, or row by row.

    frozen: all of the backbone, as in stage=align; adapted: all but LoRA adapters in it.
    """
    texts = AutoTokenizer.from_pretrained(tokenizer)
    vocabulary = Vocabulary.from_tokenizer(texts, K, D)
    with isolated_random(0):
        model = make_model(vocabulary)
        settings = LoraConfig(rank=2)
        adapters = Adapters(model.llm, settings, vocabulary.special_ids) if adapted else None
    freeze(model, PartRates(backbone=0.0 if frozen else 1.0))
    for weight in model.parameters():
        if rank and weight.requires_grad:
            weight.data += 1  # rank 0's count; the frozen tower is read from one place
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if checkpointing:
        model.activation_checkpointing_enable()
    config = TrainingConfig(
        **{
            "steps": STEPS,
            "log_every": 1,
            "checkpoint_every": STOP,
            "ema_decay": 0.9,
            "gradient_clip": 0.5,
            # eps: weights without a gradient but rounding must not make steps of it.
            "optimizer": OptimizerConfig(learning_rate=1e-3, eps=1e-4, weight_decay=0.1),
            "schedule": ScheduleConfig(kind="cosine", warmup_steps=2),
            **changes,
        }
    )
    loader = RowsLoader(DocumentBuilder(texts, vocabulary), rank, single=config.accumulation > 1)
    train(task_class(model, texts, adapters=adapters), loader, config, RunDirectory(path), stage="lm")


def child(rank: int, port: int, tokenizer: Path, path: Path, names: list[str]) -> None:
    """One of two processes, as torchrun would start it."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), LOCAL_WORLD_SIZE=str(WORLD)
    )
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    for name in names:
        settings = RUNS[name]
        run_lm(path / name, tokenizer, rank=rank, **settings)
    if "fsdp2" in names:
        with contextlib.suppress(TrainingInterrupted):
            run_lm(path / "stopped", tokenizer, StoppingTask, rank, parallel="fsdp2")
    dist.destroy_process_group()


RUNS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"parallel": "fsdp2"},
    "fsdp2 checkpointing": {"parallel": "fsdp2", "checkpointing": True},
    "fsdp2 bf16": {"parallel": "fsdp2", "mixed_precision": "bf16"},
    "ddp bf16": {"mixed_precision": "bf16"},
    "fsdp2 frozen": {"parallel": "fsdp2", "frozen": True},
    "ddp frozen": {"frozen": True},
    "fsdp2 adapted": {"parallel": "fsdp2", "adapted": True},
    "ddp adapted": {"adapted": True},
}
