"""`vilau train-clip`: the CLIP stand-in, for machines that reach no hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vilau_common import distributed
from vilau_common.config import config_to_dict
from vilau_common.data.loader import MAX_BAD_SHARE
from vilau_common.fingerprint import vocabulary_fingerprint
from vilau_common.run import RunDirectory, seed_everything
from vilau_common.training import TrainingConfig, TrainingResult, operational_keys, train
from vilau_vision_tower.clip import ClipStandInConfig, build_clip, load_text_tokenizer
from vilau_vision_tower.data import CaptionDataConfig, caption_loader
from vilau_vision_tower.losses import ContrastiveConfig
from vilau_vision_tower.task import ClipTask


@dataclass(kw_only=True)
class TrainClipConfig:
    """directory: the run directory."""

    directory: str
    seed: int = 0
    data: CaptionDataConfig
    clip: ClipStandInConfig
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    training: TrainingConfig


def train_clip(config: TrainClipConfig) -> TrainingResult:
    """Train to the end, or go on; the model lands in <directory>/model."""
    run = RunDirectory(config.directory)
    tokenizer = load_text_tokenizer(Path(config.data.directory) / "tokenizer")
    loader = caption_loader(config.data, tokenizer, config.clip.max_text_tokens, config.seed, run.path)
    seed_everything(config.seed, distributed.rank())
    model = build_clip(config.clip, config.data.image_size, tokenizer)
    task = ClipTask(model, tokenizer, config.contrastive)
    task.check(config.training)
    # Last, so that a configuration that is refused does not take the directory.
    run.claim(
        {
            **config_to_dict(config),
            "text_tokenizer_fingerprint": vocabulary_fingerprint(tokenizer.get_vocab()),
        },
        ignore=["directory", MAX_BAD_SHARE, *operational_keys()],
    )
    return train(task, loader, config.training, run, stage="clip", seed=config.seed)
