"""The unified LM's configuration, as it is saved beside its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from vilau_common.errors import UserError
from vilau_common.pictures import FITS
from vilau_vision_tower.config import VisionTowerConfig


@dataclass(kw_only=True)
class DepthConfig:
    """Depth transformer; the defaults are VILA-U's (527M parameters)."""

    width: int = 2560
    layers: int = 6
    heads: int = 40
    dropout: float = 0.1

    def validate(self) -> None:
        """Raises UserError for sizes that do not fit together."""
        for name in ("width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"depth.{name} is {getattr(self, name)}; it must be 1 or more")
        if self.width % self.heads:
            raise UserError(f"depth.width {self.width} is not a multiple of depth.heads {self.heads}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"depth.dropout is {self.dropout}; a share lies in [0, 1)")


CONVERSATIONS = ("plain", "vicuna_v1")


@strict
class UnifiedLMConfig(PreTrainedConfig):
    """text_config: any transformers causal LM; vision_config: the tower; depth: the fields of `DepthConfig`.

    projector_layers: linear layers of the projector, with GELU between; 0 takes the features as they are.
    grid_positions: add a learned embedding of its row and column to each visual position's input. VILA-U has
    none; a model as small as the demo's learns to draw sooner when it need not count positions (docs/log.md).
    conversation: the form of prompts: 'plain' (`document`), or 'vicuna_v1', the released models' (`vicuna`).
    image_fit: how a picture is made square, one of `vilau_common.pictures.FITS`. video_frames: of each video.
    """

    model_type = "vilau"
    sub_configs = {"text_config": AutoConfig, "vision_config": VisionTowerConfig}

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    depth: dict[str, Any] | None = None
    projector_layers: int = 2
    grid_positions: bool = False
    conversation: str = "plain"
    image_fit: str = "crop"
    video_frames: int = 8
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.text_config, PreTrainedConfig):
            values = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(values.pop("model_type", "llama"), **values)
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = VisionTowerConfig(**(self.vision_config or {}))
        self.depth = asdict(DepthConfig(**(self.depth or {})))
        for name, choices in (("conversation", CONVERSATIONS), ("image_fit", FITS)):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"{name} is {getattr(self, name)!r} in a model's configuration; it is one of {', '.join(choices)}"
                )
        super().__post_init__(**kwargs)

    @property
    def backbone_config(self) -> PreTrainedConfig:
        """The causal LM's configuration."""
        assert isinstance(self.text_config, PreTrainedConfig)
        return self.text_config

    @property
    def tower_config(self) -> VisionTowerConfig:
        """The vision tower's configuration."""
        assert isinstance(self.vision_config, VisionTowerConfig)
        return self.vision_config

    @property
    def depth_config(self) -> DepthConfig:
        """The depth transformer's typed configuration."""
        return DepthConfig(**(self.depth or {}))
