"""Image encoders of open_clip: its own vision transformers, and those of timm that it wraps (SigLIP, SigLIP 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from open_clip.model import _build_vision_tower
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vilau_common.errors import UserError
from vilau_vision_tower.clip.families import OPEN_CLIP
from vilau_vision_tower.clip.image import ImageEncoder


@strict
class OpenClipVisionConfig(PreTrainedConfig):
    """embed_dim, vision_cfg, quick_gelu: as in open_clip's model configurations; image_size: in pixels, which may
    differ from vision_cfg's own."""

    model_type = OPEN_CLIP

    embed_dim: int = 512
    vision_cfg: dict[str, Any] | None = None
    quick_gelu: bool = False
    image_size: int = 224


def build_image_tower(config: OpenClipVisionConfig) -> Any:
    """open_clip's image tower with random weights.

    Raises UserError for one that has no grid of tokens before a last transformer layer.
    """
    # Dropped patches would be missing from the grid.
    settings = {**(config.vision_cfg or {}), "image_size": config.image_size, "patch_dropout": 0.0}
    if settings.get("timm_model_name"):
        settings["timm_model_pretrained"] = False
    tower: Any = _build_vision_tower(config.embed_dim, settings, config.quick_gelu)
    trunk = getattr(tower, "trunk", tower)
    if not isinstance(trunk, VisionTransformer | TimmVisionTransformer):
        raise UserError(
            f"its image tower is a {type(trunk).__name__}, but a vision tower needs a plain vision transformer, whose "
            "last layer reads a grid of tokens (ViT-*, with or without SigLIP)"
        )
    # timm builds a model at its own size; setting the one that it has already changes nothing.
    if isinstance(trunk, TimmVisionTransformer):
        tower.set_input_size(config.image_size)
    return tower


def build_open_clip_encoder(
    config: OpenClipVisionConfig, mean: Sequence[float], std: Sequence[float]
) -> ImageEncoder:
    """The encoder around the image tower that `config` describes."""
    tower = build_image_tower(config)
    family = TimmEncoder if isinstance(tower, TimmModel) else OpenClipEncoder
    return family(tower, mean, std)


class OpenClipEncoder(ImageEncoder):
    """open_clip's own `VisionTransformer`: a class token, pooled by itself or with the patches, then projected."""

    prefix_tokens = 1

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.model.grid_size
        return (rows, columns)

    @property
    def width(self) -> int:
        return int(self.model.transformer.width)

    @property
    def image_size(self) -> int:
        return int(self.model.image_size[0])

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.model.transformer.resblocks

    @property
    def norms(self) -> Sequence[nn.Module]:
        return [*(layer.ln_1 for layer in self.layers[1:]), self.model.ln_post]

    def embed(self, pixels: Tensor) -> Tensor:
        return self.model._embeds(pixels)

    def head(self, tokens: Tensor) -> Tensor:
        pooled, _ = self.model._pool(tokens)
        return pooled if self.model.proj is None else pooled @ self.model.proj


class TimmEncoder(ImageEncoder):
    """timm's `VisionTransformer` inside open_clip: as SigLIP without a class token and pooled by attention, or with."""

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.model.trunk.patch_embed.grid_size
        return (rows, columns)

    @property
    def width(self) -> int:
        return int(self.model.trunk.embed_dim)

    @property
    def image_size(self) -> int:
        return int(self.model.trunk.patch_embed.img_size[0])

    @property
    def prefix_tokens(self) -> int:
        return int(self.model.trunk.num_prefix_tokens)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.model.trunk.blocks

    @property
    def norms(self) -> Sequence[nn.Module]:
        return [*(layer.norm1 for layer in self.layers[1:]), self.model.trunk.norm]

    def embed(self, pixels: Tensor) -> Tensor:
        trunk = self.model.trunk
        return trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(pixels)))

    def head(self, tokens: Tensor) -> Tensor:
        trunk = self.model.trunk
        return self.model.head(trunk.forward_head(trunk.norm(tokens)))
