"""`vilau train-lm`: the unified LM on texts and a tower's codes."""

from __future__ import annotations

from dataclasses import dataclass, field

from vilau_common import distributed
from vilau_common.config import config_to_dict
from vilau_common.data.loader import MAX_BAD_SHARE
from vilau_common.fingerprint import vocabulary_fingerprint, weights_fingerprint
from vilau_common.run import RunDirectory, seed_everything
from vilau_common.training import TrainingConfig, TrainingResult, operational_keys, train
from vilau_unified_lm.attention import check_attention
from vilau_unified_lm.backbone import BACKBONE_CONFIGS, check_row_length
from vilau_unified_lm.build import LmConfig, build_lm, lm_config, text_tokenizer
from vilau_unified_lm.data import DocumentDataConfig, data_places, document_loader
from vilau_unified_lm.lora import Adapters
from vilau_unified_lm.losses import LossConfig
from vilau_unified_lm.pretrained import find_pretrained
from vilau_unified_lm.stage import StageConfig, freeze, start_from
from vilau_unified_lm.task import UnifiedTask
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.tokenize import CodesOrigin, tower_fingerprint
from vilau_vision_tower.tower import load_tower

SCHEMA_GROUPS = {"lm/backbone": BACKBONE_CONFIGS}

# What a run may be found or computed by otherwise when it goes on: the fingerprints stand for the contents.
PLACES = ["lm.tower", "lm.text_tokenizer", "lm.start", "lm.backbone.pretrained", "lm.backbone.file"]


@dataclass(kw_only=True)
class TrainLmConfig:
    """directory: the run directory. stage: what is trained, and how fast."""

    directory: str
    seed: int = 0
    data: DocumentDataConfig
    lm: LmConfig
    loss: LossConfig = field(default_factory=LossConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    training: TrainingConfig


def train_lm(config: TrainLmConfig) -> TrainingResult:
    """Train to the end, or go on; model and tokenizer land in <directory>/model."""
    run = RunDirectory(config.directory)
    config.loss.validate()
    check_attention(config.lm.attention)
    config.lm.lora.validate()
    config.stage.validate(adapters=config.lm.lora.rank > 0)
    fingerprint = tower_fingerprint(config.lm.tower)
    tower = load_tower(config.lm.tower)
    pretrained = find_pretrained(config.lm.backbone)
    tokenizer = text_tokenizer(config.lm.text_tokenizer, pretrained, "lm.text_tokenizer")
    vocabulary = Vocabulary.from_tokenizer(tokenizer, tower.codebook_size, tower.depth)
    wanted = lm_config(config.lm, tower.config, vocabulary, pretrained)
    check_row_length(wanted.backbone_config, config.data.row_length)
    origin = CodesOrigin.of(tower, fingerprint)
    loader = document_loader(config.data, tokenizer, vocabulary, origin, config.seed, run.path)
    seed_everything(config.seed, distributed.rank())
    fingerprints = {
        "tower_fingerprint": fingerprint,
        "text_tokenizer_fingerprint": vocabulary_fingerprint(tokenizer.get_vocab()),
    }
    if config.lm.start is not None:
        model = start_from(config.lm.start, wanted, fingerprint, tokenizer)
        fingerprints["start_fingerprint"] = weights_fingerprint(RunDirectory(config.lm.start).model)
    else:
        model = build_lm(config.lm, tower, vocabulary, pretrained)
        if pretrained is not None:
            fingerprints["backbone_fingerprint"] = pretrained.fingerprint
    adapters = None
    if config.lm.lora.rank:
        adapters = Adapters(model.llm, config.lm.lora, vocabulary.special_ids)
    model.llm.set_attn_implementation(config.lm.attention)
    freeze(model, config.stage.rates)
    if config.lm.gradient_checkpointing:
        model.activation_checkpointing_enable()
    task = UnifiedTask(model, tokenizer, config.loss, config.stage.rates, adapters)
    task.check(config.training)
    # Not before all of the above has accepted the configuration: a refused one must not hold the directory.
    run.claim(
        {**config_to_dict(config), **fingerprints},
        ignore=[
            "directory",
            *data_places(config.data),
            "lm.gradient_checkpointing",
            *PLACES,
            MAX_BAD_SHARE,
            *operational_keys(),
        ],
    )
    return train(task, loader, config.training, run, stage=config.stage.name, seed=config.seed)
