"""From the settings of a unified LM to the model itself: one place where the configuration becomes an object."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

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
    attention: sdpa, eager, or flex_attention (by blocks, for long rows on GPUs): see `attention.py`.
    gradient_checkpointing: of backbone and depth transformer; less memory, one more forward pass, the same gradients.
    """

    tower: str
    text_tokenizer: str | None = None
    start: str | None = None
    backbone: BackboneConfig
    lora: LoraConfig = field(default_factory=LoraConfig)
    depth: DepthConfig
    grid_positions: bool = False
    attention: str = "sdpa"
    gradient_checkpointing: bool = False


def text_tokenizer(
    directory: str | None, pretrained: PretrainedBackbone | None, setting: str
) -> PreTrainedTokenizerBase:
    """The text tokenizer in `directory`, or the pretrained backbone's own, with the unified LM's special tokens.

    setting: what names the directory. Raises UserError where none or one too many is named.
    """
    if pretrained is not None:
        if directory is not None:
            raise UserError(
                f"{setting} is {directory}, but a pretrained backbone brings its own: set {setting}=null"
            )
        return pretrained.tokenizer
    if directory is None:
        raise UserError(
            f"{setting} has no value, and a backbone from scratch needs one: `vilau prepare` trains it "
            "(data/…/tokenizer)"
        )
    tokenizer = load_text_tokenizer(directory)
    add_special_tokens(tokenizer)
    return tokenizer


def backbone_config(
    config: BackboneConfig, vocabulary: Vocabulary, pretrained: PretrainedBackbone | None
) -> PreTrainedConfig:
    """The backbone's transformers configuration. pretrained: what `config` names, where that is a trained one."""
    return (
        new_backbone_config(config, vocabulary) if pretrained is None else pretrained.config_for(vocabulary)
    )


def lm_config(
    config: LmConfig,
    tower: VisionTowerConfig,
    vocabulary: Vocabulary,
    pretrained: PretrainedBackbone | None = None,
) -> UnifiedLMConfig:
    """The model's own configuration. pretrained: the backbone that lm.backbone names, where that is a trained one.

    Raises UserError for sizes that do not fit together.
    """
    config.depth.validate()
    return UnifiedLMConfig(
        text_config=backbone_config(config.backbone, vocabulary, pretrained).to_dict(),
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
