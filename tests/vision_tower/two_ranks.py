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
from vilau_vision_tower.quantizer import QuantizerConfig
from vilau_vision_tower.quantizer.kinds import residual_quantizer
from vilau_vision_tower.task import ClipTask

WORLD = 2
STEPS = 4
NEGATIVES = (0, 3)
KINDS = ("softmax", "sigmoid")
# Names of the trainings that `small_task` knows.
TRAININGS = (
    "tower softmax",
    "tower sigmoid",
    "tower adversarial",
    "clip softmax",
    "clip sigmoid",
    "gradient softmax",
)
QUANTIZERS = {
    f"{update}, {'shared' if shared else 'separate'}, {iterations} k-means": QuantizerConfig(
        codebook_size=16,
        depth=2,
        shared_codebook=shared,
        codebook_update=update,
        kmeans_iterations=iterations,
        ema_decay=0.5,
        restart_below=0.8,
    )
    for update, shared, iterations in [
        ("ema", False, 0),
        ("ema", True, 0),
        ("ema", False, 3),
        ("ema", True, 3),
        ("gradient", False, 0),
        ("gradient", True, 3),
    ]
}


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
    for name, config in QUANTIZERS.items():
        results[name] = quantized(config, rank, world)
    for kind in KINDS:
        for negatives in NEGATIVES:
            results[f"loss {kind} {negatives}"] = contrastive_gradients(kind, negatives, rank, world)
    for name in TRAININGS:
        results[f"training {name}"] = trained(name, rank, world, tokenizer, path / f"{name} {world}")
    return results


def quantized(config: QuantizerConfig, rank: int, world: int) -> dict[str, Tensor]:
    """State and codes at every step of codebooks that start at the first batch and restart all the time.

    The random numbers are each rank's own.
    """
    batches = torch.randn(STEPS, 40, 3, generator=torch.Generator().manual_seed(0))
    results = {}
    with isolated_random(rank):
        quantizer = residual_quantizer(config, 3).train()
        for step, joint in enumerate(batches):
            results[f"codes of step {step}"] = quantizer(share_of(joint, rank, world)).codes
            for name, value in quantizer.state_dict().items():
                results[f"{name} after step {step}"] = value.clone()
    return results


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
    """A task whose only random numbers are the quantiser's."""
    texts = AutoTokenizer.from_pretrained(tokenizer)
    with isolated_random(0):
        clip = tiny_clip(texts)
        part, kind = name.split()
        if part == "clip":
            return ClipTask(clip, texts, ContrastiveConfig(kind=kind))
        update = "gradient" if part == "gradient" else "ema"
        tower = tiny_tower(clip, code_dim=5, codebook_update=update)
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
