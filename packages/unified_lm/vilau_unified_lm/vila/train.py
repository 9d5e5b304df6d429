"""`vilau train-vila`: the baseline VILA on texts and the features of an unquantised CLIP."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from vilau_common import distributed
from vilau_common.config import config_to_dict
from vilau_common.data.loader import MAX_BAD_SHARE
from vilau_common.fingerprint import vocabulary_fingerprint
from vilau_common.run import RunDirectory, seed_everything
from vilau_common.training import TrainingConfig, TrainingResult, operational_keys, train
from vilau_unified_lm.backbone import BACKBONE_CONFIGS, BackboneConfig, check_packing, check_row_length
from vilau_unified_lm.build import backbone_config, text_tokenizer
from vilau_unified_lm.data import data_places
from vilau_unified_lm.pretrained import PretrainedBackbone, find_pretrained
from vilau_unified_lm.vila.config import VilaConfig, VilaProjectorConfig
from vilau_unified_lm.vila.data import PictureDataConfig, picture_loader, picture_vocabulary
from vilau_unified_lm.vila.model import VilaModel
from vilau_unified_lm.vila.task import VilaTask
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.clip import PretrainedClip, load_pretrained
from vilau_vision_tower.clip.config import ClipConfig, OpenClipConfig, SiglipClipConfig

SCHEMA_GROUPS = {
    "clip": {"siglip": SiglipClipConfig, "open_clip": OpenClipConfig},
    "lm/backbone": BACKBONE_CONFIGS,
}


@dataclass(kw_only=True)
class VilaSettings:
    """clip: whose features are read, at data.image_size pixels.

    text_tokenizer: directory of the text tokenizer, for a backbone from scratch; a pretrained one brings its own.
    train_encoder: training moves the image encoder, too (VILA freezes it).
    """

    clip: ClipConfig
    text_tokenizer: str | None = None
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
    pretrained = find_pretrained(config.vila.backbone)
    tokenizer = text_tokenizer(config.vila.text_tokenizer, pretrained, "vila.text_tokenizer")
    vocabulary = picture_vocabulary(tokenizer)
    check_row_length(backbone_config(config.vila.backbone, vocabulary, pretrained), config.data.row_length)
    clip = load_pretrained(config.vila.clip, config.data.image_size)
    seed_everything(config.seed, distributed.rank())
    model = build_vila(config.vila, clip, vocabulary, pretrained)
    loader = picture_loader(config.data, tokenizer, model.places, config.seed, run.path)
    task = VilaTask(model, tokenizer)
    task.check(config.training)
    # Not before all of the above has accepted the configuration: a refused one must not hold the directory.
    run.claim(
        {
            **config_to_dict(config),
            "clip_fingerprint": clip.fingerprint,
            "text_tokenizer_fingerprint": vocabulary_fingerprint(tokenizer.get_vocab()),
            **({} if pretrained is None else {"backbone_fingerprint": pretrained.fingerprint}),
        },
        ignore=[
            "directory",
            *data_places(config.data),
            "vila.clip.pretrained",
            "vila.text_tokenizer",
            "vila.backbone.pretrained",
            "vila.backbone.file",
            MAX_BAD_SHARE,
            *operational_keys(),
        ],
    )
    return train(task, loader, config.training, run, stage="vila", seed=config.seed)


def build_vila(
    config: VilaSettings,
    clip: PretrainedClip,
    vocabulary: Vocabulary,
    pretrained: PretrainedBackbone | None = None,
) -> VilaModel:
    """A VILA on the image encoder of `clip`, its backbone new or `pretrained`.

    Raises UserError for sizes that do not fit together, or a backbone that takes no packed rows.
    """
    model = VilaModel(
        VilaConfig(
            text_config=backbone_config(config.backbone, vocabulary, pretrained).to_dict(),
            vision_config=clip.vision_config.to_dict(),
            image_mean=clip.image_mean,
            image_std=clip.image_std,
            projector=asdict(config.projector),
            train_encoder=config.train_encoder,
        ),
        None if pretrained is None else pretrained.load(vocabulary),
    )
    if pretrained is None:
        check_packing(model.llm)
    model.encoder.model.load_state_dict(clip.vision.state_dict())
    return model
