"""The families of image encoders, told by the `model_type` of their configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import CLIPVisionConfig, PreTrainedConfig, SiglipVisionConfig

from vilau_vision_tower.clip.image import ImageEncoder
from vilau_vision_tower.clip.transformers_image import ClipEncoder, SiglipEncoder

OPEN_CLIP = "open_clip_vision"


def vision_config(values: dict[str, Any]) -> PreTrainedConfig:
    """A typed configuration from the plain dict that a saved tower carries; a SigLIP's where it names no family."""
    family = values.get("model_type", SiglipVisionConfig.model_type)
    if family == OPEN_CLIP:
        # open_clip and timm take seconds to import, and other towers need neither.
        from vilau_vision_tower.clip.open_clip_image import OpenClipVisionConfig

        return OpenClipVisionConfig(**values)
    return {"clip_vision_model": CLIPVisionConfig, "siglip_vision_model": SiglipVisionConfig}[family](
        **values
    )


def build_image_encoder(
    config: PreTrainedConfig, mean: Sequence[float], std: Sequence[float]
) -> ImageEncoder:
    """The encoder that `config` describes, with random weights. mean, std: of pixels in [0, 1]."""
    if isinstance(config, SiglipVisionConfig):
        return SiglipEncoder(config, mean, std)
    if isinstance(config, CLIPVisionConfig):
        return ClipEncoder(config, mean, std)
    from vilau_vision_tower.clip.open_clip_image import OpenClipVisionConfig, build_open_clip_encoder

    assert isinstance(config, OpenClipVisionConfig)
    return build_open_clip_encoder(config, mean, std)
