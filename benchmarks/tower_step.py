"""What a training step of the tower costs, against its unavoidable parts and against a batch that is there already.

    make bench BENCH=tower_step                                     the demo's tower, discriminator on
    make bench BENCH=tower_step ARGS="data.loader.batch_size=256"   settings of train-tower; --rounds N
    make bench BENCH=tower_step ARGS="--encoder siglip-large-16-256 experiment=vila_u_256/tower"   any tower

Parts: encoder and decoder forward and backward, the frozen text encoder's and perceptual distance's passes, both
sides of the discriminator, and the quantiser's distances as plain products. A step may cost 1.25 times their sum.
Beside it stands the ratio to the four parts that the bar was first set for, without text encoder and perceptual
distance. Loading (of the demo's pictures): a step on batches from the loader may take 1.05 times that on one fixed
batch. With --encoder weights and batches are random, and nothing is loaded. Closes with one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from transformers import SiglipTextConfig, SiglipTextModel, SiglipVisionConfig, SiglipVisionModel

from vilau_common.config import load_config
from vilau_common.data.prepare import PrepareConfig, prepare
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.training.environment import torch_settings
from vilau_common.training.optim import build_optimizers
from vilau_common.training.state import TrainingState
from vilau_vision_tower.clip import TextEncoder, build_clip, load_text_tokenizer
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.data import CaptionedBatch, caption_loader
from vilau_vision_tower.losses import build_perceptual
from vilau_vision_tower.quantizer import ResidualQuantizer
from vilau_vision_tower.quantizer.search import full_float32
from vilau_vision_tower.task import TowerTask
from vilau_vision_tower.tower import VisionTower
from vilau_vision_tower.train import SCHEMA_GROUPS, TrainTowerConfig
from vilau_vision_tower.train_clip import TrainClipConfig

SETTINGS = (
    "experiment=scenes/tower",
    "loss.perceptual.kind=clip",
    "loss.adversarial={weight: 0.75, adaptive: false, discriminator: {channels: 32, layers: 2}}",
    "+training.other_optimizers={discriminator: {learning_rate: 1e-4, betas: [0.5, 0.9]}}",
)
PICTURES = 4_000  # in the data set that the loader reads
WARM_UP = 3  # rounds that are not counted
BLOCK = 24  # steps in a row with the loader, or without it
SETTLE = 8  # of them first, not counted: the loader's batches that were made while it was not asked

STEP_BAR, LOADING_BAR = 1.25, 1.05
FIRST_PARTS = ("encoder", "decoder", "discriminator", "quantizer")


def encoder_size(width: int, mlp: int, layers: int) -> dict[str, int]:
    """A SigLIP transformer's sizes as transformers names them."""
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
    }


# The sizes of released SigLIPs: image and text encoder.
ENCODERS = {
    "siglip-base-16-224": (SiglipVisionConfig(image_size=224, patch_size=16), SiglipTextConfig()),
    "siglip-large-16-256": (
        SiglipVisionConfig(image_size=256, patch_size=16, **encoder_size(1024, 4096, 24)),
        SiglipTextConfig(**encoder_size(1024, 4096, 24)),
    ),
    "siglip-so400m-14-384": (
        SiglipVisionConfig(image_size=384, patch_size=14, **encoder_size(1152, 4304, 27)),
        SiglipTextConfig(**encoder_size(1152, 4304, 27)),
    ),
}


class SwitchedLoader:
    """Batches of `loader`, or, while `fixed` is set, one of them over and over."""

    def __init__(self, loader: Iterable[CaptionedBatch]) -> None:
        self.batches = iter(loader)
        self.batch: CaptionedBatch = next(self.batches)
        self.fixed = True

    def __iter__(self) -> Iterator[CaptionedBatch]:
        while True:
            yield self.batch if self.fixed else next(self.batches)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        raise NotImplementedError


def main() -> None:
    """Measure by turns, so that a noisy machine disturbs all alike, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--encoder", choices=ENCODERS, help="random weights of this size, random batches")
    parser.add_argument("overrides", nargs="*", help="settings of train-tower, key=value")
    arguments = parser.parse_intermixed_args()
    config = composed(arguments.overrides)
    with tempfile.TemporaryDirectory() as directory, torch_settings(config.training):
        if arguments.encoder:
            loader, task = build_synthetic(config, *ENCODERS[arguments.encoder], Path(directory))
        else:
            loader, task = build(config, Path(directory))
        never_ending = dataclasses.replace(config.training, steps=10**9)
        state = TrainingState(task, loader, never_ending, seed=0)
        task.train_mode()
        state.step = config.loss.adversarial.start_step
        # The parts run in the precision of the loop's steps.
        half = torch.autocast(
            task.tower.device.type, torch.bfloat16, enabled=config.training.mixed_precision == "bf16"
        )
        try:
            results = step_and_parts(state, parts_of(task, loader.batch), half, arguments.rounds)
            if not arguments.encoder:
                results |= loading(state, loader, arguments.rounds)
        finally:
            state.close()
    print(json.dumps({"threads": torch.get_num_threads(), "device": str(task.tower.device), **results}))


def composed(overrides: Sequence[str]) -> TrainTowerConfig:
    """Of train-tower; without an experiment the demo's, with perceptual distance and discriminator."""
    chosen = any(override.startswith("experiment=") for override in overrides)
    settings = [*overrides] if chosen else [*SETTINGS, *overrides]
    return load_config("train_tower", settings, TrainTowerConfig, groups=SCHEMA_GROUPS)


def build_synthetic(
    config: TrainTowerConfig, vision: SiglipVisionConfig, text: SiglipTextConfig, directory: Path
) -> tuple[SwitchedLoader, TowerTask]:
    """A tower and a text encoder of these sizes, and endless random batches; nothing is downloaded."""
    data = config.data
    assert vision.image_size == data.image_size, "the encoder's size is the experiment's data.image_size"
    size, length = data.loader.batch_size, text.max_position_embeddings
    batch = CaptionedBatch(
        images=torch.rand(size, 3, data.image_size, data.image_size) * 2 - 1,
        caption_ids=torch.randint(text.vocab_size, (size, length)),
        negative_ids=torch.randint(text.vocab_size, (size * data.hard_negatives, length)),
    )
    clip = SiglipVisionModel(vision)
    texts = TextEncoder(SiglipTextModel(text), tokenizer=None)
    perceptual = config.loss.perceptual
    if perceptual.kind == "lpips":
        networks = {"vgg": torchvision.models.vgg16, "alex": torchvision.models.alexnet}
        state = networks[perceptual.network](weights=None).features.state_dict()
        torch.save({f"features.{name}": value for name, value in state.items()}, directory / "trunk.pth")
        loss = dataclasses.replace(
            config.loss, perceptual=dataclasses.replace(perceptual, weights=str(directory / "trunk.pth"))
        )
        config = dataclasses.replace(config, loss=loss)
    return SwitchedLoader(itertools.repeat(batch)), tower_task(config, clip, texts)


def tower_task(config: TrainTowerConfig, clip: SiglipVisionModel, texts: TextEncoder) -> TowerTask:
    """As `train_tower` builds it."""
    tower_config = VisionTowerConfig(
        vision_config=clip.config.to_dict(),
        quantizer=dataclasses.asdict(config.tower.quantizer),
        decoder=dataclasses.asdict(config.tower.decoder),
    )
    tower = VisionTower.from_clip(clip, tower_config)
    perceptual = build_perceptual(config.loss.perceptual, tower.encoder)
    if config.tower.gradient_checkpointing:
        tower.activation_checkpointing_enable()
    images = torch.zeros(1, config.data.image_size, config.data.image_size, 3, dtype=torch.uint8).numpy()
    contrastive = config.contrastive.with_own(scale=100.0, bias=-10.0)
    return TowerTask(tower, texts, contrastive, config.loss, images, perceptual, evaluation_batch=1)


def build(config: TrainTowerConfig, directory: Path) -> tuple[SwitchedLoader, TowerTask]:
    """A data set of scenes with its loader, and a tower of random weights on the demo's CLIP."""
    world = ScenesConfig(image_size=config.data.image_size, train_count=PICTURES, test_count=1)
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(PrepareConfig(directory=str(directory), source=world))
    tokenizer = load_text_tokenizer(directory / "tokenizer")
    clip_config = load_config("train_clip", ["experiment=scenes/clip"], TrainClipConfig)
    clip = build_clip(clip_config.clip, config.data.image_size, tokenizer)
    texts = TextEncoder(clip.text_model, tokenizer)
    data = dataclasses.replace(config.data, directory=str(directory))
    loader = SwitchedLoader(caption_loader(data, tokenizer, texts.length, 0, directory))
    return loader, tower_task(config, clip.vision_model, texts)


def parts_of(task: TowerTask, batch: CaptionedBatch) -> dict[str, Callable[[], object]]:
    """The unavoidable parts by name; each leaves gradients behind."""
    network, tower = task.network, task.tower
    batch = batch.to(tower.device)
    size, (height, width) = len(batch.images), tower.grid
    ids = torch.cat([batch.caption_ids, batch.negative_ids])
    features = torch.randn(size, tower.encoder.width, height, width, device=tower.device)
    pixels, pictures = torch.randn_like(batch.images), batch.images.clone().requires_grad_()
    vectors = torch.randn(size * height * width, tower.feature_width, device=tower.device)
    parts: dict[str, Callable[[], object]] = {
        "encoder": lambda: tower.encoder(batch.images).sum().backward(),
        "decoder": lambda: tower.decoder(features.requires_grad_()).backward(pixels),
        "text encoder": lambda: network.text_encoder(ids),
    }
    if isinstance(tower.quantizer, ResidualQuantizer):
        books = tower.quantizer.codebooks.detach()

        def quantizer() -> None:
            with full_float32(books.device):  # as the search is
                for depth in range(tower.depth):
                    vectors @ books[depth % len(books)].T

        parts["quantizer"] = quantizer
    if (perceptual := network.perceptual) is not None:
        parts["perceptual"] = lambda: perceptual(pictures, batch.images).backward()
    if (adversarial := network.adversarial) is not None:

        def discriminator() -> None:
            adversarial.of_tower(pictures).backward()
            adversarial.of_discriminator(batch.images, pictures).backward()

        parts["discriminator"] = discriminator
    return parts


def step_and_parts(
    state: TrainingState, parts: dict[str, Callable[[], object]], precision: torch.autocast, rounds: int
) -> dict[str, float]:
    """The median of a step on a fixed batch and of each part, and their ratio."""
    optimizers = build_optimizers(state.task.parameter_groups(), state.config)

    def update() -> None:
        for optimizer in optimizers.values():
            optimizer.clip(state.config.gradient_clip)
            optimizer.step(0.0)  # a learning rate of 0: the weights stay

    times: dict[str, list[float]] = {name: [] for name in ("step", *parts, "optimizer")}
    for round_ in range(rounds + WARM_UP):
        taken = {"step": seconds(state.advance)}
        for name, part in parts.items():
            with precision:
                taken[name] = seconds(part)
        for weight in state.task.network.parameters():
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        taken["optimizer"] = seconds(update)
        state.task.network.zero_grad()
        if round_ >= WARM_UP:
            for name, value in taken.items():
                times[name].append(value)
    medians = {name: statistics.median(values) for name, values in times.items()}
    together = sum(medians[name] for name in parts)
    ratio = medians["step"] / together
    first = medians["step"] / sum(medians[name] for name in FIRST_PARTS if name in parts)
    for name, value in medians.items():
        print(f"{name:14} {value * 1e3:8.1f} ms")
    print(
        f"step / sum of parts {ratio:.2f} (bar {STEP_BAR}); with the optimizer, which is no part in the bar, "
        f"{medians['step'] / (together + medians['optimizer']):.2f}"
    )
    print(f"step / sum of {', '.join(name for name in FIRST_PARTS if name in parts)} alone: {first:.2f}")
    return {
        "step_over_parts": ratio,
        "step_over_first_parts": first,
        **{f"seconds/{name}": value for name, value in medians.items()},
    }


def loading(state: TrainingState, loader: SwitchedLoader, rounds: int) -> dict[str, float]:
    """The median of a step with the loader over that of one on a fixed batch."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(max(1, rounds // 3)):
        for fixed in (True, False):
            loader.fixed = fixed
            block = [seconds(state.advance) for _ in range(BLOCK)]
            # The mean of a block: a step that waits for data shall count for all that it waits.
            times[fixed].append(statistics.mean(block[SETTLE:]))
    fixed, loaded = (statistics.median(times[key]) for key in (True, False))
    print(f"with the loader {loaded * 1e3:.1f} ms, fixed batch {fixed * 1e3:.1f} ms")
    print(f"loader / fixed {loaded / fixed:.3f} (bar {LOADING_BAR})")
    return {"loader_over_fixed": loaded / fixed, "seconds/loaded": loaded, "seconds/fixed": fixed}


def seconds(function: Callable[[], object]) -> float:
    """Of one call, on a GPU until it has come to its end."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
