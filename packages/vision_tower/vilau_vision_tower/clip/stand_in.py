"""A small SigLIP to train from scratch (`vilau train-clip`), for machines that reach no hub.

It is saved as transformers saves a SigLIP, with its tokenizer beside it, so that the tower starts from it exactly
as it starts from real weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import (
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
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
