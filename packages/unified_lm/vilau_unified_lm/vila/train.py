"""`vilau train-vila`: the baseline VILA on texts and the features of an unquantised CLIP."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from vilau_common import distributed
from vilau_common.config import config_to_dict
from vilau_common.errors import UserError
from vilau_common.fingerprint import vocabulary_fingerprint
from vilau_common.run import RunDirectory, seed_everything
from vilau_common.training import TrainingConfig, TrainingResult, operational_keys, train
from vilau_unified_lm.train import BackboneConfig, llama_config
from vilau_unified_lm.vila.config import VilaConfig, VilaProjectorConfig
from vilau_unified_lm.vila.data import PictureDataConfig, picture_loader, picture_vocabulary
from vilau_unified_lm.vila.model import VilaModel
from vilau_unified_lm.vila.task import VilaTask
from vilau_unified_lm.vocabulary import Vocabulary, add_special_tokens
from vilau_vision_tower.clip import PretrainedClip, load_pretrained, load_text_tokenizer
from vilau_vision_tower.clip.config import ClipConfig, OpenClipConfig, SiglipClipConfig

SCHEMA_GROUPS = {"clip": {"siglip": SiglipClipConfig, "open_clip": OpenClipConfig}}


@dataclass(kw_only=True)
class VilaSettings:
    """clip: whose features are read, at data.image_size pixels. text_tokenizer: directory of the text tokenizer.

    train_encoder: training moves the image encoder, too (VILA freezes it).
    """

    clip: ClipConfig
    text_tokenizer: str
    backbone: BackboneConfig
    projector: VilaProjectorConfig = field(default_factory=VilaProjectorConfig)
    train_encoder: bool = False


@dataclass(kw_only=True)
class TrainVilaConfig:
    """directory: the run directory."""

    directory: str
    seed: int = 0
    data: PictureDataConfig
    vila: VilaSettings
    training: TrainingConfig


def train_vila(config: TrainVilaConfig) -> TrainingResult:
    """Train to the end, or go on; model and tokenizer land in <directory>/model."""
    run = RunDirectory(config.directory)
    config.data.validate()
    if config.data.row_length > config.vila.backbone.context:
        raise UserError(
            f"data.row_length is {config.data.row_length}, but vila.backbone.context holds "
            f"{config.vila.backbone.context}"
        )
    clip = load_pretrained(config.vila.clip, config.data.image_size)
    tokenizer = load_text_tokenizer(config.vila.text_tokenizer)
    add_special_tokens(tokenizer)
    seed_everything(config.seed, distributed.rank())
    model = build_vila(config.vila, clip, picture_vocabulary(tokenizer))
    loader = picture_loader(config.data, tokenizer, model.places, config.seed, run.path)
    task = VilaTask(model, tokenizer)
    # Not before all of the above has accepted the configuration: a refused one must not hold the directory.
    run.claim(
        {
            **config_to_dict(config),
            "clip_fingerprint": clip.fingerprint,
            "text_tokenizer_fingerprint": vocabulary_fingerprint(tokenizer.get_vocab()),
        },
        ignore=[
            "directory",
            "data.directory",
            "data.blend",
            "vila.clip.pretrained",
            "vila.text_tokenizer",
            *operational_keys(),
        ],
    )
    return train(task, loader, config.training, run, stage="vila", seed=config.seed)


def build_vila(config: VilaSettings, clip: PretrainedClip, vocabulary: Vocabulary) -> VilaModel:
    """A VILA with a new backbone on the image encoder of `clip`."""
    config.backbone.validate()
    model = VilaModel(
        VilaConfig(
            text_config=llama_config(config.backbone, vocabulary).to_dict(),
            vision_config=clip.vision_config.to_dict(),
            image_mean=clip.image_mean,
            image_std=clip.image_std,
            projector=asdict(config.projector),
            train_encoder=config.train_encoder,
        )
    )
    model.encoder.model.load_state_dict(clip.vision.state_dict())
    return model
