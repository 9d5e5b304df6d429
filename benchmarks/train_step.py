"""What a training step of the demo's LM costs, against its unavoidable parts, and with two precisions of products.

    make bench BENCH=train_step [ARGS="--rounds 15 training.matmul_precision=highest"]      settings of train-lm

Floor of a step: forward and backward pass of the same backbone on as many places, causal and without documents, and
of the depth transformer with its head on the supervised visual positions. A step may cost 1.2 times their sum; it holds
the optimiser, too, whose time stands beside.
Precisions: highest is torch's default, and the reference. On a CPU medium takes oneDNN's products and attention without
flash kernels. Their floor: the step's products at the speed that one large product reaches. Closes with one line of
JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lm_throughput import Line, build
from torch.utils.flop_counter import FlopCounterMode

from vilau_common.training import TrainingConfig
from vilau_common.training.environment import torch_settings
from vilau_common.training.optim import build_optimizers
from vilau_common.training.state import TrainingState
from vilau_unified_lm.data import document_loader
from vilau_unified_lm.packing import IGNORE, MixedSequence
from vilau_unified_lm.task import UnifiedTask
from vilau_vision_tower.tokenize import CodesOrigin

BAR = 1.2
WARM_UP = 3  # rounds that are not counted
PRECISIONS = ("highest", "medium")
SIDE = 2048  # of the large product


class OneBatch:
    """A loader of one batch, over and over."""

    def __init__(self, batch: MixedSequence) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[MixedSequence]:
        while True:
            yield self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        raise NotImplementedError


def batch_of(line: Line, directory: Path) -> MixedSequence:
    """Packed rows of the demo's mixture."""
    origin = CodesOrigin.of(line.tower, line.fingerprint)
    loader = document_loader(line.config.data, line.tokenizer, line.vocabulary, origin, 0, directory)
    batch = next(loader)
    loader.close()
    return batch


def parts_of(task: UnifiedTask, batch: MixedSequence) -> dict[str, Callable[[], object]]:
    """The unavoidable parts by name; each leaves gradients behind."""
    lm = task.model
    batch = batch.to(lm.device)
    width = lm.config.backbone_config.hidden_size
    inputs = torch.randn(*batch.token_ids.shape, width, device=lm.device, requires_grad=True)
    positions = torch.arange(inputs.shape[1], device=lm.device).expand_as(batch.token_ids)
    count = int((batch.visual_targets != IGNORE).sum())
    before = torch.randn(count, width, device=lm.device, requires_grad=True)
    embeddings = lm.image_tokenizer.embed_codes(batch.codes[:1]).expand(count, -1, -1)

    def backbone() -> None:
        decoder = lm.llm.get_decoder()
        states = decoder(inputs_embeds=inputs, position_ids=positions, use_cache=False).last_hidden_state
        states.backward(inputs.detach())

    def depth() -> None:
        lm.depth.logits(lm.depth(before, embeddings)).sum().backward()

    return {"backbone": backbone, "depth": depth}


def step_and_parts(task: UnifiedTask, batch: MixedSequence, line: Line, rounds: int) -> dict[str, float]:
    """The medians of a step on a fixed batch and of each part, measured by turns, and their ratio."""
    config = line.config.training
    state = TrainingState(task, OneBatch(batch), dataclasses.replace(config, steps=10**9), seed=0)
    task.train_mode()
    parts = parts_of(task, batch)
    optimizers = build_optimizers(task.parameter_groups(), config)
    # The parts run in the precision of the loop's steps.
    half = torch.autocast(task.model.device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16")

    def update() -> None:
        for optimizer in optimizers.values():
            optimizer.clip(config.gradient_clip)
            optimizer.step(0.0)  # a learning rate of 0: the weights stay

    times: dict[str, list[float]] = {name: [] for name in ("step", *parts, "optimizer")}
    for round_ in range(rounds + WARM_UP):
        taken = {"step": seconds(state.advance)}
        for name, part in parts.items():
            task.network.zero_grad()
            with half:
                taken[name] = seconds(part)
        for weight in task.network.parameters():
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        taken["optimizer"] = seconds(update)
        task.network.zero_grad()
        if round_ >= WARM_UP:
            for name, value in taken.items():
                times[name].append(value)
    state.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    floor = sum(medians[name] for name in parts)
    for name, value in medians.items():
        print(f"{name:10} {value * 1e3:7.1f} ms")
    ratio, bare = medians["step"] / floor, (medians["step"] - medians["optimizer"]) / floor
    print(f"step / floor {ratio:.2f} (bar {BAR}); without the optimiser {bare:.2f}")
    return {
        "step_over_floor": ratio,
        "step_without_optimizer_over_floor": bare,
        **{f"seconds/{name}": value for name, value in medians.items()},
    }


def precisions(task: UnifiedTask, batch: MixedSequence, rounds: int) -> dict[str, float]:
    """Forward and backward pass with each precision of products, by turns."""
    side = torch.randn(SIDE, SIDE)
    task.before_step([batch])

    def step() -> None:
        task.network.zero_grad()
        task.training_step(task.network, batch, 0).losses["main"].backward()

    settings = {name: TrainingConfig(steps=1, matmul_precision=name) for name in PRECISIONS}
    steps: dict[str, list[float]] = {name: [] for name in settings}
    products: dict[str, list[float]] = {name: [] for name in settings}
    flops: dict[str, int] = {}
    for name, setting in settings.items():
        with torch_settings(setting), FlopCounterMode(display=False) as counter:
            step()
        flops[name] = counter.get_total_flops()
    for round_ in range(rounds + WARM_UP):
        for name, setting in settings.items():
            with torch_settings(setting):
                times = seconds(step), seconds(lambda: side @ side)
            if round_ >= WARM_UP:
                steps[name].append(times[0])
                products[name].append(times[1])
    results: dict[str, float] = {}
    reference = statistics.median(steps[PRECISIONS[0]])
    for name in settings:
        taken = statistics.median(steps[name])
        floor = flops[name] / (2 * SIDE**3 / statistics.median(products[name]))
        results |= {f"seconds/{name}": taken, f"{name}_over_highest": taken / reference}
        print(
            f"{name:10} {taken * 1e3:7.1f} ms, {taken / reference:.2f} of highest; floor {floor * 1e3:.1f} ms"
        )
    return results


def seconds(function: Callable[[], object]) -> float:
    """Of one call, on a GPU until it has come to its end."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure both by turns, so that a noisy machine disturbs them alike, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("overrides", nargs="*", help="settings of train-lm, key=value")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as directory:
        line = build(Path(directory), arguments.overrides)
        batch = batch_of(line, Path(directory))
    task = line.task()
    with torch_settings(line.config.training):
        results = step_and_parts(task, batch, line, arguments.rounds)
    if not torch.cuda.is_available():
        results |= precisions(task, batch, arguments.rounds)
    print(json.dumps({"threads": torch.get_num_threads(), "device": str(task.model.device), **results}))


if __name__ == "__main__":
    main()
