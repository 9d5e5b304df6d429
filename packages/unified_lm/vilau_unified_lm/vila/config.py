"""VILA's configuration, as it is saved beside its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from vilau_common.errors import UserError
from vilau_vision_tower.clip.families import vision_config
from vilau_vision_tower.clip.image import PLAIN

PROJECTORS = ("linear", "mlp")
FACTORS = (1, 2)


@dataclass(kw_only=True)
class VilaProjectorConfig:
    """kind: linear, or mlp (two layers with GELU between). downsample: 2 joins 2×2 neighbouring patches to one place of
    the LM, which is a quarter of the places; 1 leaves every patch a place."""

    kind: str = "mlp"
    downsample: int = 1

    def __post_init__(self) -> None:
        if self.kind not in PROJECTORS:
            raise UserError(f"vila.projector.kind is {self.kind!r}; it is {' or '.join(PROJECTORS)}")
        if self.downsample not in FACTORS:
            raise UserError(
                f"vila.projector.downsample is {self.downsample}; it is 1 (every patch is a place) or 2 (2×2 are one)"
            )


@strict
class VilaConfig(PreTrainedConfig):
    """text_config: any transformers causal LM. vision_config: a CLIP's image encoder, told by its `model_type`.

    image_mean, image_std: the encoder's pixel statistics, for images in [0, 1]. projector: the fields of
    `VilaProjectorConfig`. train_encoder: training moves the image encoder, too.
    """

    model_type = "vilau_vila"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    projector: dict[str, Any] | None = None
    train_encoder: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.text_config, PreTrainedConfig):
            values = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(values.pop("model_type", "llama"), **values)
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = vision_config(self.vision_config or {})
        self.image_mean = self.image_mean or [PLAIN] * 3
        self.image_std = self.image_std or [PLAIN] * 3
        self.projector = asdict(VilaProjectorConfig(**(self.projector or {})))
        super().__post_init__(**kwargs)

    @property
    def backbone_config(self) -> PreTrainedConfig:
        """The causal LM's configuration."""
        assert isinstance(self.text_config, PreTrainedConfig)
        return self.text_config

    @property
    def encoder_config(self) -> PreTrainedConfig:
        """The image encoder's configuration."""
        assert isinstance(self.vision_config, PreTrainedConfig)
        return self.vision_config

    @property
    def projector_config(self) -> VilaProjectorConfig:
        """The projector's typed configuration."""
        return VilaProjectorConfig(**(self.projector or {}))
