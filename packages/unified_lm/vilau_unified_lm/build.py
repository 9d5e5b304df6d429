"""From the settings of a unified LM to the model itself: one place where the configuration becomes an object."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from transformers import PreTrainedTokenizerBase

from vilau_common.errors import UserError
from vilau_unified_lm.backbone import BackboneConfig, check_packing, new_backbone_config
from vilau_unified_lm.config import DepthConfig, UnifiedLMConfig
from vilau_unified_lm.lora import LoraConfig
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.pretrained import PretrainedBackbone
from vilau_unified_lm.vocabulary import Vocabulary, add_special_tokens
from vilau_vision_tower.clip import load_text_tokenizer
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.tower import VisionTower


@dataclass(kw_only=True)
class LmConfig:
    """tower: the vision tower's run directory; start: the run of the stage before, whose weights this one goes on from.

    text_tokenizer: directory of the text tokenizer, for a backbone from scratch; a pretrained one brings its own.
    gradient_checkpointing: of backbone and depth transformer; less memory, one more forward pass, the same gradients.
    """

    tower: str
    text_tokenizer: str | None = None
    start: str | None = None
    backbone: BackboneConfig
    lora: LoraConfig = field(default_factory=LoraConfig)
    depth: DepthConfig
    grid_positions: bool = False
    gradient_checkpointing: bool = False


def text_tokenizer(config: LmConfig, pretrained: PretrainedBackbone | None) -> PreTrainedTokenizerBase:
    """The text tokenizer with the unified LM's special tokens. Raises UserError where none or one too many is named."""
    if pretrained is not None:
        if config.text_tokenizer is not None:
            raise UserError(
                f"lm.text_tokenizer is {config.text_tokenizer}, but a pretrained backbone brings its own: set "
                "lm.text_tokenizer=null"
            )
        return pretrained.tokenizer
    if config.text_tokenizer is None:
        raise UserError(
            "lm.text_tokenizer has no value, and a backbone from scratch needs one: `vilau prepare` trains it "
            "(data/…/tokenizer)"
        )
    tokenizer = load_text_tokenizer(config.text_tokenizer)
    add_special_tokens(tokenizer)
    return tokenizer


def lm_config(
    config: LmConfig,
    tower: VisionTowerConfig,
    vocabulary: Vocabulary,
    pretrained: PretrainedBackbone | None = None,
) -> UnifiedLMConfig:
    """The model's own configuration. pretrained: the backbone that lm.backbone names, where that is a trained one.

    Raises UserError for sizes that do not fit together.
    """
    backbone = (
        new_backbone_config(config.backbone, vocabulary)
        if pretrained is None
        else pretrained.config_for(vocabulary)
    )
    config.depth.validate()
    return UnifiedLMConfig(
        text_config=backbone.to_dict(),
        vision_config=tower.to_dict(),
        depth=asdict(config.depth),
        grid_positions=config.grid_positions,
    )


def build_lm(
    config: LmConfig,
    tower: VisionTower,
    vocabulary: Vocabulary,
    pretrained: PretrainedBackbone | None = None,
) -> UnifiedLM:
    """A unified LM around a trained tower, its backbone new or `pretrained`.

    Raises UserError for sizes that do not fit together, or a backbone that takes no packed rows.
    """
    built = lm_config(config, tower.config, vocabulary, pretrained)
    model = UnifiedLM(built, None if pretrained is None else pretrained.load(vocabulary))
    if pretrained is None:
        check_packing(model.llm)
    model.vision_tower.load_state_dict(tower.state_dict())
    return model
