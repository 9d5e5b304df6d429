"""The vision tower's configuration, as it is saved beside its weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from vilau_vision_tower.clip.families import vision_config
from vilau_vision_tower.clip.image import PLAIN
from vilau_vision_tower.decoder import ConvDecoderConfig, DecoderConfig, decoder_config
from vilau_vision_tower.quantizer import AnyQuantizerConfig, quantizer_config


@strict
class VisionTowerConfig(PreTrainedConfig):
    """vision_config: the image encoder, told by its `model_type` (a SigLIP where it has none).

    image_mean, image_std: the encoder's pixel statistics, for images in [0, 1]. quantizer, decoder: the fields of one
    of their kinds.
    """

    model_type = "vilau_vision_tower"
    sub_configs = {"vision_config": AutoConfig}

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    quantizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = vision_config(self.vision_config or {})
        self.image_mean = self.image_mean or [PLAIN] * 3
        self.image_std = self.image_std or [PLAIN] * 3
        self.quantizer = asdict(quantizer_config(self.quantizer or {}))
        self.decoder = asdict(decoder_config(self.decoder or asdict(ConvDecoderConfig())))
        super().__post_init__(**kwargs)

    @property
    def encoder_config(self) -> PreTrainedConfig:
        """The image encoder's configuration."""
        assert isinstance(self.vision_config, PreTrainedConfig)
        return self.vision_config

    @property
    def quantizer_config(self) -> AnyQuantizerConfig:
        """The quantiser's typed configuration."""
        return quantizer_config(self.quantizer or {})

    @property
    def decoder_config(self) -> DecoderConfig:
        """The decoder's typed configuration."""
        return decoder_config(self.decoder or {})
