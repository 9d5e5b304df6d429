"""What each of two processes does in `test_two_ranks`; the test does the same in one on the joint batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tiny_tower import (
    BatchLoader,
    adversarial_weights,
    fill_codebooks,
    share_of,
    tiny_clip,
    tiny_task,
    tiny_tower,
)
from torch import Tensor
from transformers import AutoTokenizer

from vilau_common.run import RunDirectory, isolated_random
from vilau_common.training import OptimizerConfig, Task, TrainingConfig, train
from vilau_vision_tower.losses import ContrastiveConfig, ContrastiveLoss
from vilau_vision_tower.quantizer import QuantizerConfig, ResidualQuantizer
from vilau_vision_tower.task import ClipTask

WORLD = 2
STEPS = 4
NEGATIVES = (0, 3)
KINDS = ("softmax", "sigmoid")
# Names of the trainings that `small_task` knows.
TRAININGS = ("tower softmax", "tower sigmoid", "tower adversarial", "clip softmax", "clip sigmoid")


def child(rank: int, port: int, tokenizer: Path, path: Path) -> None:
    """One of two processes, as torchrun would start it; leaves what came out in RANK.pt."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), LOCAL_WORLD_SIZE=str(WORLD)
    )
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    dist.init_process_group("gloo")
    results = everything(rank, WORLD, tokenizer, path)
    torch.save(results, path / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def everything(rank: int, world: int, tokenizer: Path, path: Path) -> dict[str, Any]:
    """All that is compared, as rank `rank` of `world`."""
    results: dict[str, Any] = {}
    for shared in (False, True):
        results[f"moved, shared {shared}"] = moved_codebooks(shared, rank, world)
        results[f"fresh, shared {shared}"] = fresh_codebooks(shared, rank, world)
    for kind in KINDS:
        for negatives in NEGATIVES:
            results[f"loss {kind} {negatives}"] = contrastive_gradients(kind, negatives, rank, world)
    for name in TRAININGS:
        results[f"training {name}"] = trained(name, rank, world, tokenizer, path / f"{name} {world}")
    return results


def moved_codebooks(shared: bool, rank: int, world: int) -> dict[str, Tensor]:
    """Codebooks that started equal and have followed a few batches; none restarts."""
    with isolated_random(0):
        config = QuantizerConfig(
            codebook_size=8, depth=2, shared_codebook=shared, ema_decay=0.8, restart_below=0.0
        )
        quantizer = ResidualQuantizer(config, 3).train()
        fill_codebooks(quantizer)
        for joint in torch.randn(STEPS, 40, 3):
            quantizer(share_of(joint, rank, world))
    return quantizer.state_dict()


def fresh_codebooks(shared: bool, rank: int, world: int) -> dict[str, Tensor]:
    """Codebooks that start at the first batch and restart all the time, with random numbers of each rank's own."""
    with isolated_random(rank):
        config = QuantizerConfig(codebook_size=8, depth=2, shared_codebook=shared, ema_decay=0.5)
        quantizer = ResidualQuantizer(config, 3).train()
        for _ in range(STEPS):
            quantizer(torch.randn(10, 3))
    return quantizer.state_dict()


def contrastive_gradients(kind: str, negatives: int, rank: int, world: int) -> dict[str, Tensor]:
    """The loss and its gradients: of this rank's image vectors, and of the learned scale and bias."""
    generator = torch.Generator().manual_seed(0)
    rows = (6, 6, 6 * negatives)
    images, texts, others = (F.normalize(torch.randn(n, 4, generator=generator), dim=-1) for n in rows)
    # Some texts are equal, on one rank and on both.
    ids = [torch.randint(4, (n, 1), generator=generator) for n in rows[1:]]
    mine = share_of(images, rank, world).requires_grad_()
    loss = ContrastiveLoss(ContrastiveConfig(kind=kind, bias=-1.0))
    texts, others, *ids = (share_of(joint, rank, world) for joint in (texts, others, *ids))
    value = loss(mine, texts, others, torch.cat(ids))
    value.backward()
    assert mine.grad is not None
    parameters = {name: weight.grad for name, weight in loss.named_parameters() if weight.grad is not None}
    return {"loss": value.detach(), "images": mine.grad, **parameters}


def small_task(name: str, tokenizer: Path) -> Task:
    """A task with no random numbers: nothing in it restarts."""
    texts = AutoTokenizer.from_pretrained(tokenizer)
    with isolated_random(0):
        clip = tiny_clip(texts)
        part, kind = name.split()
        if part == "clip":
            return ClipTask(clip, texts, ContrastiveConfig(kind=kind))
        tower = tiny_tower(clip, restart_below=0.0, code_dim=5)
        if kind == "adversarial":
            # Two losses and the adaptive weight, whose backward passes all meet checkpointed layers.
            tower.activation_checkpointing_enable()
            return tiny_task(tower, clip, texts, **adversarial_weights(start_step=1))
        return tiny_task(tower, clip, texts, kind=kind)


def trained(name: str, rank: int, world: int, tokenizer: Path, path: Path) -> dict[str, Tensor]:
    """The weights and buffers after some steps of the loop."""
    task = small_task(name, tokenizer)
    # eps: the biases of attention's keys get no gradient but rounding, which Adam would make steps of.
    optimizer = OptimizerConfig(learning_rate=1e-3, eps=1e-4)
    config = TrainingConfig(steps=STEPS, checkpoint_every=None, optimizer=optimizer)
    train(task, BatchLoader(8, negatives=1, part=rank, parts=world), config, RunDirectory(path), stage=name)
    return {name: value.detach().clone() for name, value in task.trained_state().items()}
