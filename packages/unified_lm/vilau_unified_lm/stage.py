"""The stages of a training, as VILA's (Lin et al. 2023, section 3.1; VILA-U, section 4.1), and what each one moves.

    align     what is new, projector and depth transformer, around a frozen backbone
    pretrain  everything, on pairs and interleaved documents
    sft       everything, on instructions with some text alone

VILA's first stage trains the projector alone, there the only new part. Here the depth transformer is new, too: were it
left random, its gradients would upset a trained backbone in the second stage just as a random projector's do. A stage
starts from the weights of the one before (`lm.start`); its optimiser and its data begin anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import PreTrainedTokenizerBase

from vilau_common.errors import UserError
from vilau_common.fingerprint import vocabulary_fingerprint
from vilau_common.run import RunDirectory
from vilau_unified_lm.config import UnifiedLMConfig
from vilau_unified_lm.model import UnifiedLM
from vilau_vision_tower.clip import load_text_tokenizer

# What a later stage may set anew: none of it changes what the weights mean.
FREE = {
    "text_config": {"max_position_embeddings", "attention_dropout", "use_cache"},
    "depth": {"dropout"},
}


@dataclass(kw_only=True)
class PartRates:
    """The learning rate of each part as a share of training.optimizer.learning_rate; 0 freezes it."""

    backbone: float = 1.0
    projector: float = 1.0
    depth: float = 1.0


@dataclass(kw_only=True)
class StageConfig:
    """name: of the stage, for the log. By default everything is trained together."""

    name: str = "lm"
    rates: PartRates = field(default_factory=PartRates)

    def validate(self, adapters: bool) -> None:
        """Raises UserError for rates that train nothing. adapters: the backbone has LoRA adapters."""
        for part, rate in vars(self.rates).items():
            if not 0 <= rate < math.inf:  # NaN neither
                raise UserError(f"stage.rates.{part} is {rate}; a share is 0 (frozen) or above")
        if not any(vars(self.rates).values()):
            raise UserError("stage.rates freezes every part; give one a share above 0")
        if adapters and not self.rates.backbone:
            raise UserError(
                "lm.lora.rank is set, but stage.rates.backbone is 0: the adapters would not be trained; set "
                "lm.lora.rank=0 or stage.rates.backbone=1"
            )


def parts(model: UnifiedLM) -> dict[str, nn.Module]:
    """The parts that a stage trains or freezes, by the names of `PartRates`."""
    return {"backbone": model.llm, "projector": model.projector, "depth": model.depth}


def freeze(model: UnifiedLM, rates: PartRates) -> None:
    """No gradients for the parts whose rate is 0; the others stay as they are (adapters freeze most of a backbone)."""
    for name, part in parts(model).items():
        if not getattr(rates, name):
            part.requires_grad_(False)


def start_from(
    directory: str, config: UnifiedLMConfig, tower_fingerprint: str, tokenizer: PreTrainedTokenizerBase
) -> UnifiedLM:
    """The weights of a finished run of `vilau train-lm`, in a model of `config`.

    Raises UserError where there is no such run, where its tower is another one (by fingerprint), or where its model or
    text tokenizer is not the one that `config` and `tokenizer` say.
    """
    run = RunDirectory(directory)
    if not run.config.is_file() or not (run.model / "config.json").is_file():
        raise UserError(
            f"lm.start is {directory}, but no finished run of `vilau train-lm` is there (config.yaml, model/)"
        )
    theirs = yaml.safe_load(run.config.read_text(encoding="utf-8")).get("tower_fingerprint")
    if theirs is None:
        raise UserError(f"lm.start is {directory}, which is a run of another kind than `vilau train-lm`")
    if theirs != tower_fingerprint:
        raise UserError(
            f"lm.start is {directory}, which was trained with the tower {theirs}, but lm.tower is {tower_fingerprint}: "
            "the same codes mean something else; give that run's tower, or start anew (lm.start=null)"
        )
    saved = load_text_tokenizer(run.model)
    if vocabulary_fingerprint(saved.get_vocab()) != vocabulary_fingerprint(tokenizer.get_vocab()):
        raise UserError(
            f"lm.start is {directory}, whose text tokenizer ({len(saved)} tokens) is not this run's ({len(tokenizer)})"
        )
    for key, theirs, ours in _differences(UnifiedLMConfig.from_pretrained(run.model), config):
        raise UserError(
            f"lm.start is {directory}, whose model is another one than lm.backbone, lm.depth and lm.grid_positions "
            f"describe: {key} is {theirs}, not {ours}"
        )
    return _weights(run.model, config)


def _weights(directory: Path, config: UnifiedLMConfig) -> UnifiedLM:
    model, report = UnifiedLM.from_pretrained(
        directory, config=config, dtype=torch.float32, output_loading_info=True
    )
    # transformers would go on with random numbers in their place.
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"the model in {directory} lacks {len(missing)} of its weights, among them {missing[0]}"
        )
    assert isinstance(model, UnifiedLM)
    return model


def _differences(saved: UnifiedLMConfig, wanted: UnifiedLMConfig) -> Iterator[tuple[str, Any, Any]]:
    """(key, saved, wanted) of what the weights depend on and is not the same."""
    left, right = _flat(saved), _flat(wanted)
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key):
            yield key, left.get(key), right.get(key)


def _flat(config: UnifiedLMConfig) -> dict[str, Any]:
    of_backbone = config.backbone_config.to_diff_dict()
    # Notes of the library on where a model came from and how it is run.
    notes = {"transformers_version", "architectures", "dtype", "_name_or_path", "_attn_implementation"}
    flat = {"grid_positions": config.grid_positions}
    for section, values in (("text_config", of_backbone), ("depth", vars(config.depth_config))):
        for name, value in values.items():
            if name not in FREE[section] | notes:
                flat[f"{section}.{name}"] = value
    return flat
