"""Tiny models with random weights, batches, and what the vision tower's tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, SiglipModel

from vilau_vision_tower.clip import ClipEncoderConfig, ClipStandInConfig, TextEncoder, build_clip
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.data import CaptionedBatch
from vilau_vision_tower.decoder import DecoderConfig, TransformerDecoderConfig
from vilau_vision_tower.discriminator import DiscriminatorConfig
from vilau_vision_tower.losses import (
    AdversarialConfig,
    ContrastiveConfig,
    PerceptualConfig,
    TowerLossConfig,
    build_perceptual,
)
from vilau_vision_tower.quantizer import ResidualQuantizer, quantizer_config
from vilau_vision_tower.task import TowerTask
from vilau_vision_tower.tower import VisionTower

IMAGE_SIZE, PATCH, GRID = 32, 8, (4, 4)
WIDTH, TEXT_LENGTH = 16, 24
DECODER = TransformerDecoderConfig(width=16, layers=1, heads=2)
DISCRIMINATOR = DiscriminatorConfig(channels=4, layers=2, groups=2)


def stand_in_config(text_length: int = TEXT_LENGTH) -> ClipStandInConfig:
    return ClipStandInConfig(
        image=ClipEncoderConfig(width=WIDTH, layers=3, heads=2, mlp_ratio=2),
        text=ClipEncoderConfig(width=8, layers=2, heads=2, mlp_ratio=2),
        patch_size=PATCH,
        max_text_tokens=text_length,
    )


def tiny_clip(tokenizer: PreTrainedTokenizerFast, image_size: int = IMAGE_SIZE) -> SiglipModel:
    """A CLIP none of whose weights is 0 or 1, as fresh biases and norms are: those would hide mistakes."""
    return disturb(build_clip(stand_in_config(), image_size, tokenizer)).eval()


def tiny_tower(clip: SiglipModel, decoder: DecoderConfig = DECODER, **quantizer: Any) -> VisionTower:
    """A tower from `clip` with random codebooks. quantizer: its kind and settings, or changes of the residual one's."""
    settings = quantizer_config(
        quantizer if "kind" in quantizer else {"codebook_size": 32, "depth": 3, **quantizer}
    )
    config = VisionTowerConfig(
        vision_config=clip.vision_model.config.to_dict(), quantizer=asdict(settings), decoder=asdict(decoder)
    )
    tower = VisionTower.from_clip(clip.vision_model, config)
    if isinstance(tower.quantizer, ResidualQuantizer):
        fill_codebooks(tower.quantizer)
    return tower.eval()


def tiny_task(
    tower: VisionTower,
    clip: SiglipModel,
    tokenizer: PreTrainedTokenizerFast,
    kind: str = "softmax",
    **weights: Any,
) -> TowerTask:
    loss = TowerLossConfig(**weights)
    return TowerTask(
        tower,
        TextEncoder(clip.text_model, tokenizer),
        ContrastiveConfig(kind=kind),
        loss,
        torch.randint(256, (4, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8).numpy(),
        build_perceptual(loss.perceptual, tower.encoder),
        evaluation_batch=3,
    )


def adversarial_weights(start_step: int = 0, adaptive: bool = True) -> dict[str, Any]:
    """Weights of `TowerLossConfig` with a discriminator and a perceptual distance."""
    return {
        "perceptual": PerceptualConfig(kind="clip", weight=0.6),
        "adversarial": AdversarialConfig(
            weight=0.4, start_step=start_step, adaptive=adaptive, discriminator=DISCRIMINATOR
        ),
    }


def disturb(module: nn.Module) -> Any:
    """Add noise to every parameter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def fill_codebooks(quantizer: ResidualQuantizer, scale: float = 0.5) -> None:
    """Started codebooks of random codes."""
    quantizer.set_codebooks(scale * torch.randn_like(quantizer.codebooks))


def batch_of(size: int, negatives: int = 0, seed: int = 0) -> CaptionedBatch:
    """Random images and token ids."""
    generator = torch.Generator().manual_seed(seed)
    return CaptionedBatch(
        images=torch.rand(size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator) * 2 - 1,
        caption_ids=torch.randint(3, 100, (size, TEXT_LENGTH), generator=generator),
        negative_ids=torch.randint(3, 100, (size * negatives, TEXT_LENGTH), generator=generator),
    )


class BatchLoader:
    """Endless random batches; rank `part` of `parts` gets its share of each."""

    def __init__(self, size: int, negatives: int = 0, part: int = 0, parts: int = 1) -> None:
        self.size, self.negatives, self.part, self.parts = size, negatives, part, parts
        self.batches = 0

    def __iter__(self) -> Iterator[CaptionedBatch]:
        while True:
            self.batches += 1
            joint = batch_of(self.size, self.negatives, seed=self.batches)
            shares = {name: share_of(value, self.part, self.parts) for name, value in vars(joint).items()}
            yield CaptionedBatch(**shares)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]


def share_of(rows: Tensor, part: int, parts: int) -> Tensor:
    """The rows of a joint batch that one of `parts` ranks has."""
    size = len(rows) // parts
    return rows[part * size : (part + 1) * size]
