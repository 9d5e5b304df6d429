"""`vilau train-lm`: the unified LM on texts and a tower's codes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from transformers import LlamaConfig

from vilau_common import distributed
from vilau_common.config import config_to_dict
from vilau_common.errors import UserError
from vilau_common.fingerprint import vocabulary_fingerprint
from vilau_common.run import RunDirectory, seed_everything
from vilau_common.training import TrainingConfig, TrainingResult, operational_keys, train
from vilau_unified_lm.attention import check_attention
from vilau_unified_lm.config import DepthConfig, UnifiedLMConfig
from vilau_unified_lm.data import DocumentDataConfig, document_loader
from vilau_unified_lm.losses import LossConfig
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.task import UnifiedTask
from vilau_unified_lm.vocabulary import Vocabulary, add_special_tokens
from vilau_vision_tower.clip import load_text_tokenizer
from vilau_vision_tower.tokenize import CodesOrigin, tower_fingerprint
from vilau_vision_tower.tower import VisionTower, load_tower


@dataclass(kw_only=True)
class BackboneConfig:
    """A LLaMA from scratch: sizes as in transformers' LlamaConfig; context: positions it can hold."""

    width: int = 4096
    layers: int = 32
    heads: int = 32
    key_value_heads: int = 32
    mlp_width: int = 11008
    context: int = 4096

    def validate(self) -> None:
        """Raises UserError for sizes that do not fit together."""
        for larger, smaller in (("width", "heads"), ("heads", "key_value_heads")):
            if getattr(self, larger) % getattr(self, smaller):
                raise UserError(
                    f"lm.backbone.{larger} {getattr(self, larger)} is not a multiple of "
                    f"lm.backbone.{smaller} {getattr(self, smaller)}"
                )


@dataclass(kw_only=True)
class LmConfig:
    """tower: the vision tower's run directory; text_tokenizer: directory of the text tokenizer.

    attention: sdpa, eager, or flex_attention (by blocks, for long rows on GPUs): see `attention.py`.
    """

    tower: str
    text_tokenizer: str
    backbone: BackboneConfig
    depth: DepthConfig
    grid_positions: bool = False
    attention: str = "sdpa"


@dataclass(kw_only=True)
class TrainLmConfig:
    """directory: the run directory."""

    directory: str
    seed: int = 0
    data: DocumentDataConfig
    lm: LmConfig
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig


def train_lm(config: TrainLmConfig) -> TrainingResult:
    """Train to the end, or go on; model and tokenizer land in <directory>/model."""
    run = RunDirectory(config.directory)
    config.loss.validate()
    check_attention(config.lm.attention)
    fingerprint = tower_fingerprint(config.lm.tower)
    tower = load_tower(config.lm.tower)
    tokenizer = load_text_tokenizer(config.lm.text_tokenizer)
    add_special_tokens(tokenizer)
    vocabulary = Vocabulary.from_tokenizer(tokenizer, tower.codebook_size, tower.depth)
    if config.data.row_length > config.lm.backbone.context:
        raise UserError(
            f"data.row_length is {config.data.row_length}, but lm.backbone.context holds {config.lm.backbone.context}"
        )
    origin = CodesOrigin.of(tower, fingerprint)
    loader = document_loader(config.data, tokenizer, vocabulary, origin, config.seed, run.path)
    seed_everything(config.seed, distributed.rank())
    model = build_lm(config.lm, tower, vocabulary)
    task = UnifiedTask(model, tokenizer, config.loss)
    # Not before all of the above has accepted the configuration: a refused one must not hold the directory.
    run.claim(
        {
            **config_to_dict(config),
            "tower_fingerprint": fingerprint,
            "text_tokenizer_fingerprint": vocabulary_fingerprint(tokenizer.get_vocab()),
        },
        ignore=[
            "directory",
            "data.directory",
            "data.blend",
            "lm.tower",
            "lm.text_tokenizer",
            *operational_keys(),
        ],
    )
    return train(task, loader, config.training, run, stage="lm", seed=config.seed)


def build_lm(config: LmConfig, tower: VisionTower, vocabulary: Vocabulary) -> UnifiedLM:
    """A unified LM with a new backbone around a trained tower."""
    config.backbone.validate()
    model = UnifiedLM(
        UnifiedLMConfig(
            text_config=llama_config(config.backbone, vocabulary).to_dict(),
            vision_config=tower.config.to_dict(),
            depth=asdict(config.depth),
            grid_positions=config.grid_positions,
        )
    )
    model.vision_tower.load_state_dict(tower.state_dict())
    model.llm.set_attn_implementation(config.attention)
    return model


def llama_config(config: BackboneConfig, vocabulary: Vocabulary) -> LlamaConfig:
    """The configuration of a new backbone for the texts of `vocabulary`."""
    return LlamaConfig(
        vocab_size=vocabulary.text_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        max_position_embeddings=config.context,
        bos_token_id=vocabulary.begin,
        eos_token_id=vocabulary.end,
        pad_token_id=vocabulary.pad,
    )
