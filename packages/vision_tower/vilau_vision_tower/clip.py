"""The pretrained CLIP that the tower starts from: image encoder, text encoder and text tokenizer.

A CLIP lives in one directory: a transformers SigLIP model (`config.json`, `model.safetensors`) with its
tokenizer beside it. The small stand-in that `vilau train-clip` trains is saved in that same form, so that the
tower starts from it exactly as it starts from real weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
)

from vilau_common.errors import UserError


@dataclass(kw_only=True)
class ClipEncoderConfig:
    """Size of one transformer: width, layers, heads, and the MLP's width as a multiple of `width`."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_ratio: int = 4


@dataclass(kw_only=True)
class ClipStandInConfig:
    """A small SigLIP trained from scratch. patch_size in pixels; max_text_tokens: captions are cut or padded to it."""

    image: ClipEncoderConfig
    text: ClipEncoderConfig
    patch_size: int = 8
    max_text_tokens: int = 48


def build_clip(config: ClipStandInConfig, image_size: int, tokenizer: PreTrainedTokenizerFast) -> SiglipModel:
    """A SigLIP model with random weights (transformers' own initialisation)."""
    if image_size % config.patch_size:
        raise UserError(
            f"clip.patch_size is {config.patch_size}, which does not divide the images' {image_size} pixels"
        )
    vision = SiglipVisionConfig(
        hidden_size=config.image.width,
        intermediate_size=config.image.width * config.image.mlp_ratio,
        num_hidden_layers=config.image.layers,
        num_attention_heads=config.image.heads,
        image_size=image_size,
        patch_size=config.patch_size,
    )
    text = SiglipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.text.width,
        intermediate_size=config.text.width * config.text.mlp_ratio,
        num_hidden_layers=config.text.layers,
        num_attention_heads=config.text.heads,
        max_position_embeddings=config.max_text_tokens,
        projection_size=config.image.width,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))


def load_clip(directory: str | Path) -> tuple[SiglipModel, PreTrainedTokenizerFast]:
    """SigLIP and its tokenizer from a directory. Raises UserError where there is none."""
    path = Path(directory)
    if not (path / "config.json").is_file():
        raise UserError(
            f"no CLIP in {path}: expected a transformers SigLIP directory with config.json and model.safetensors; "
            "`make train-clip` trains the small stand-in"
        )
    model = SiglipModel.from_pretrained(path, dtype=torch.float32)
    return model, load_text_tokenizer(path)


def load_text_tokenizer(directory: str | Path) -> PreTrainedTokenizerFast:
    """The text tokenizer saved in `directory`. Raises UserError where there is none."""
    path = Path(directory)
    if not (path / "tokenizer_config.json").is_file():
        raise UserError(f"no text tokenizer in {path}: expected tokenizer.json and tokenizer_config.json")
    # Where the tokenizer is whole, no class has to be looked up by the model beside it (which may be ours).
    whole = (path / "tokenizer.json").is_file()
    tokenizer: PreTrainedTokenizerFast = (
        PreTrainedTokenizerFast if whole else AutoTokenizer
    ).from_pretrained(path)
    return tokenizer


def caption_ids(tokenizer: PreTrainedTokenizerFast, captions: list[str], length: int) -> Tensor:
    """Captions as SigLIP reads them: int64 [B, length], end-of-text, then padded (the last position is pooled)."""
    encoded = tokenizer(
        [caption + (tokenizer.eos_token or "") for caption in captions],
        padding="max_length",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    ids: Tensor = encoded["input_ids"]
    return ids


class TextEncoder(nn.Module):
    """The frozen text side: captions -> unit vectors float [B, C]."""

    def __init__(self, model: SiglipTextModel, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer

    @property
    def length(self) -> int:
        """Tokens per caption."""
        return int(self.model.config.max_position_embeddings)

    @torch.no_grad()
    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [B, length] -> unit vectors float [B, C]."""
        return F.normalize(self.model(input_ids=input_ids).pooler_output, dim=-1)

    def embed(self, captions: list[str]) -> Tensor:
        """Captions -> unit vectors float [B, C]."""
        device = next(self.model.parameters()).device
        return self(caption_ids(self.tokenizer, captions, self.length).to(device))

    def save_pretrained(self, directory: Path) -> None:
        """Writes model and tokenizer so that `from_pretrained` reads them back."""
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    @classmethod
    def from_pretrained(cls, directory: Path) -> TextEncoder:
        """Reads what `save_pretrained` wrote. Raises UserError where there is none."""
        if not (directory / "config.json").is_file():
            raise UserError(f"no text encoder in {directory}: expected config.json and model.safetensors")
        model = SiglipTextModel.from_pretrained(directory, dtype=torch.float32)
        return cls(model, load_text_tokenizer(directory))
