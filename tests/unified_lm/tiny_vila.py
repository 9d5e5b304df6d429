"""Tiny random VILAs and their documents: 3×3 patches 24 wide, hidden states 32, three encoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tiny_lm import CAPTIONS, CONTEXT, IMAGE_SIZE, QUESTIONS, SIDE
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from vilau_common.pictures import Picture
from vilau_unified_lm.backbone import LlamaBackboneConfig
from vilau_unified_lm.document import DocumentBuilder
from vilau_unified_lm.packing import pack
from vilau_unified_lm.vila.config import VilaProjectorConfig
from vilau_unified_lm.vila.data import (
    NUMBER_DEPTH,
    PictureBatch,
    PictureDocument,
    picture_places,
    picture_vocabulary,
    stacked,
)
from vilau_unified_lm.vila.model import VilaModel
from vilau_unified_lm.vila.train import VilaSettings, build_vila
from vilau_vision_tower.clip import PretrainedClip, load_pretrained
from vilau_vision_tower.clip.config import SiglipClipConfig

TURNS = [(turn["question"], turn["answer"]) for turn in QUESTIONS]


def save_clip(directory: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A random SigLIP of three layers with its tokenizer, as `train-clip` leaves it."""
    vision = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=IMAGE_SIZE // SIDE,
    )
    text = SiglipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_size=24,
    )
    SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).save_pretrained(
        directory / "model"
    )
    tokenizer.save_pretrained(directory / "model")
    return directory


def vila_settings(
    clip: str = "",
    text_tokenizer: str = "",
    kind: str = "mlp",
    downsample: int = 1,
    train_encoder: bool = False,
) -> VilaSettings:
    return VilaSettings(
        clip=SiglipClipConfig(pretrained=clip),
        text_tokenizer=text_tokenizer,
        backbone=LlamaBackboneConfig(
            width=32, layers=2, heads=4, key_value_heads=2, mlp_width=64, context=CONTEXT
        ),
        projector=VilaProjectorConfig(kind=kind, downsample=downsample),
        train_encoder=train_encoder,
    )


def make_vila(clip: PretrainedClip, tokenizer: PreTrainedTokenizerBase, **settings: object) -> VilaModel:
    """A tiny model in evaluation mode, its weights large enough that every input matters to every output."""
    model = build_vila(vila_settings(**settings), clip, picture_vocabulary(tokenizer)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in (*model.llm.parameters(), *model.projector.parameters()):
            if parameter.ndim > 1:
                parameter.normal_(std=1.2 * parameter.shape[-1] ** -0.5)
    return model


def load_clip_at(directory: Path) -> PretrainedClip:
    return load_pretrained(SiglipClipConfig(pretrained=str(directory)), IMAGE_SIZE)


def random_picture(seed: int) -> Picture:
    return np.random.default_rng(seed).integers(256, size=(IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)


def reading_forms(builder: DocumentBuilder, places: int) -> list[PictureDocument]:
    """Documents of every form that VILA reads, of different lengths, each picture another."""
    picture = picture_places(0, places)
    documents = [
        builder.image_to_text(picture, CAPTIONS[1]),
        builder.questions(picture, TURNS, independent=True),
        builder.text(CAPTIONS[3]),
        builder.questions(picture, TURNS[:2], independent=False),
        builder.image_to_text(picture, CAPTIONS[0]),
        builder.text(CAPTIONS[0]),
    ]
    shown = [(random_picture(0),), (random_picture(1),), (), (random_picture(2),), (random_picture(3),), ()]
    return [PictureDocument(*pair) for pair in zip(documents, shown, strict=True)]


def picture_batch(rows: Sequence[Sequence[PictureDocument]], length: int) -> PictureBatch:
    sequence = pack([[item.document for item in row] for row in rows], length, NUMBER_DEPTH)
    pictures = [picture for row in rows for item in row for picture in item.shown()]
    return PictureBatch(sequence, stacked(pictures, IMAGE_SIZE))


def alone(document: PictureDocument) -> PictureBatch:
    return picture_batch([[document]], len(document.document))


def as_images(pictures: Sequence[Picture]) -> Tensor:
    """float [P, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
