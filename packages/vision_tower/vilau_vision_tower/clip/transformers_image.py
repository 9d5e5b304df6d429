"""Image encoders of transformers: SigLIP (and SigLIP 2 of fixed resolution) and CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vilau_vision_tower.clip.image import ImageEncoder


class TransformersEncoder(ImageEncoder):
    """What SigLIP and CLIP share: sizes from the configuration, layers that take an attention mask.

    Their layers see to activation checkpointing themselves.
    """

    def __init__(
        self,
        model: nn.Module,
        config: SiglipVisionConfig | CLIPVisionConfig,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.config = config
        super().__init__(model, mean, std)

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // int(self.config.patch_size)
        return (side, side)

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    @property
    def image_size(self) -> int:
        return int(self.config.image_size)

    def run(self, layer: nn.Module, tokens: Tensor) -> Tensor:
        return layer(tokens, attention_mask=None)


class SiglipEncoder(TransformersEncoder):
    """transformers' `SiglipVisionModel`: no class token, an attention pooling head, embeddings as wide as features."""

    prefix_tokens = 0

    def __init__(self, config: SiglipVisionConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(SiglipVisionModel(config), config, mean, std)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.model.encoder.layers

    @property
    def norms(self) -> Sequence[nn.Module]:
        return [*(layer.layer_norm1 for layer in self.layers[1:]), self.model.post_layernorm]

    def embed(self, pixels: Tensor) -> Tensor:
        return self.model.embeddings(pixels)

    def head(self, tokens: Tensor) -> Tensor:
        return self.model.head(self.model.post_layernorm(tokens))


class ClipEncoder(TransformersEncoder):
    """transformers' `CLIPVisionModelWithProjection`: the class token is pooled and projected."""

    prefix_tokens = 1

    def __init__(self, config: CLIPVisionConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(CLIPVisionModelWithProjection(config), config, mean, std)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.model.vision_model.encoder.layers

    @property
    def norms(self) -> Sequence[nn.Module]:
        return [*(layer.layer_norm1 for layer in self.layers[1:]), self.model.vision_model.post_layernorm]

    def embed(self, pixels: Tensor) -> Tensor:
        vision = self.model.vision_model
        return vision.pre_layrnorm(vision.embeddings(pixels))

    def head(self, tokens: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model.post_layernorm(tokens[:, 0]))


def resized_positions(embeddings: Any, image_size: int) -> Tensor:
    """The position embeddings of a SigLIP or CLIP for another image size, float [P + h * w, C].

    embeddings: its `SiglipVisionEmbeddings` or `CLIPVisionEmbeddings`; the library itself interpolates (bicubic).
    """
    positions = embeddings.position_embedding.weight
    side = image_size // embeddings.patch_size
    prefix = embeddings.num_positions - embeddings.num_patches
    # The library reads only the shape of what positions are for.
    shape_of = torch.empty(1, prefix + side * side, positions.shape[1], device="meta")
    with torch.no_grad():
        return embeddings.interpolate_pos_encoding(shape_of, image_size, image_size)[0]
