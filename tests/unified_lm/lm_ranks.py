"""What each of two processes does in `test_lm_ranks`; the test does the same in one on the joint batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny_lm import D, K, all_forms, make_model
from transformers import AutoTokenizer

from vilau_common.run import RunDirectory, isolated_random
from vilau_common.training import OptimizerConfig, TrainingConfig, train
from vilau_unified_lm.document import Document, DocumentBuilder
from vilau_unified_lm.losses import LossConfig
from vilau_unified_lm.packing import MixedSequence, pack
from vilau_unified_lm.task import UnifiedTask
from vilau_unified_lm.vocabulary import Vocabulary

WORLD = 2
STEPS = 3
LENGTH = 90


class PartsLoader:
    """Steps of four rows, in as many parts as asked for; this process takes `per_step` of them, from `first` on.

    Text and pictures are spread as unevenly as they can be: a part of one row has text alone, or few targets.
    """

    def __init__(self, builder: DocumentBuilder, parts: int, first: int, per_step: int) -> None:
        forms = all_forms(builder)
        rows: list[list[Document]] = [[forms[2]], [forms[0], forms[1]], [forms[6]], [forms[4], forms[3]]]
        shares = [rows[start::parts] for start in range(parts)]
        self.batches = [pack(share, LENGTH, D) for share in shares[first : first + per_step]]

    def __iter__(self) -> Iterator[MixedSequence]:
        while True:
            yield from self.batches

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        raise NotImplementedError


def run(
    tokenizer_directory: Path, path: Path, normalization: str, rank: int, world: int, accumulation: int
) -> None:
    """Some steps of the loop; what is left is in the run directory."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    vocabulary = Vocabulary.from_tokenizer(tokenizer, K, D)
    with isolated_random(0):
        model = make_model(vocabulary)
    for block in model.depth.blocks:
        block.dropout.p = 0.0  # processes draw their own
    loader = PartsLoader(
        DocumentBuilder(tokenizer, vocabulary), world * accumulation, rank * accumulation, accumulation
    )
    # eps: gradients that are nothing but rounding must not become Adam's steps.
    optimizer = OptimizerConfig(learning_rate=1e-2, eps=1e-3)
    config = TrainingConfig(
        steps=STEPS, accumulation=accumulation, log_every=1, checkpoint_every=None, optimizer=optimizer
    )
    task = UnifiedTask(model, tokenizer, LossConfig(normalization=normalization))
    train(task, loader, config, RunDirectory(path), stage="lm")


def child(
    rank: int, port: int, tokenizer_directory: Path, path: Path, normalizations: tuple[str, ...]
) -> None:
    """One of two processes, as torchrun would start it; two batches a step each."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), LOCAL_WORLD_SIZE=str(WORLD)
    )
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    dist.init_process_group("gloo")
    for normalization in normalizations:
        run(tokenizer_directory, path / normalization, normalization, rank, WORLD, accumulation=2)
    dist.barrier()
    dist.destroy_process_group()
