"""`vilau train-tower`: the vision tower, from a CLIP."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from vilau_common import distributed
from vilau_common.config import config_to_dict
from vilau_common.errors import UserError
from vilau_common.fingerprint import weights_fingerprint
from vilau_common.run import RunDirectory, seed_everything
from vilau_common.training import TrainingConfig, TrainingResult, operational_keys, train
from vilau_vision_tower.clip import TextEncoder, load_clip
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.data import CaptionDataConfig, caption_loader, read_images
from vilau_vision_tower.decoder import ConvDecoderConfig, DecoderConfig, TransformerDecoderConfig
from vilau_vision_tower.losses import ContrastiveConfig, TowerLossConfig, build_perceptual
from vilau_vision_tower.quantizer import QUANTIZER_CONFIGS, AnyQuantizerConfig
from vilau_vision_tower.task import TowerTask
from vilau_vision_tower.tower import VisionTower

SCHEMA_GROUPS = {
    "tower/quantizer": QUANTIZER_CONFIGS,
    "tower/decoder": {"conv": ConvDecoderConfig, "transformer": TransformerDecoderConfig},
}

# Pictures of the test split that the training measures itself on; `vilau evaluate` takes all.
TEST_PICTURES = 256


@dataclass(kw_only=True)
class TowerConfig:
    """clip: directory of the CLIP that the tower starts from (a run of `train-clip`, or a SigLIP directory).

    gradient_checkpointing: of encoder and decoder; less memory, one more forward pass, the same gradients.
    """

    clip: str
    gradient_checkpointing: bool = False
    quantizer: AnyQuantizerConfig
    decoder: DecoderConfig


@dataclass(kw_only=True)
class TrainTowerConfig:
    """directory: the run directory."""

    directory: str
    seed: int = 0
    data: CaptionDataConfig
    tower: TowerConfig
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    loss: TowerLossConfig = field(default_factory=TowerLossConfig)
    training: TrainingConfig


def train_tower(config: TrainTowerConfig) -> TrainingResult:
    """Train to the end, or go on; tower and text encoder land in <directory>/model."""
    run = RunDirectory(config.directory)
    clip_directory = Path(config.tower.clip)
    clip_directory = clip_directory / "model" if (clip_directory / "model").is_dir() else clip_directory
    clip, tokenizer = load_clip(clip_directory)
    if clip.config.vision_config.image_size != config.data.image_size:
        raise UserError(
            f"tower.clip {config.tower.clip} reads pictures of {clip.config.vision_config.image_size} pixels, but "
            f"data.image_size is {config.data.image_size}"
        )
    text_encoder = TextEncoder(clip.text_model, tokenizer)
    loader = caption_loader(config.data, tokenizer, text_encoder.length, config.seed, run.path)
    test_images = read_images(
        Path(config.data.directory) / "test", TEST_PICTURES, size=config.data.image_size
    )
    seed_everything(config.seed, distributed.rank())
    tower = VisionTower.from_clip(
        clip.vision_model,
        VisionTowerConfig(
            vision_config=clip.vision_model.config.to_dict(),
            quantizer=asdict(config.tower.quantizer),
            decoder=asdict(config.tower.decoder),
        ),
    )
    if config.tower.gradient_checkpointing:
        tower.activation_checkpointing_enable()
    # The tower has a copy of CLIP's weights, so that these may stay as they are.
    perceptual = build_perceptual(config.loss.perceptual, clip.vision_model)
    task = TowerTask(tower, text_encoder, config.contrastive, config.loss, test_images, perceptual)
    # Last, so that a configuration that is refused does not take the directory.
    run.claim(
        {**config_to_dict(config), "clip_fingerprint": weights_fingerprint(clip_directory)},
        ignore=["directory", "tower.clip", "tower.gradient_checkpointing", *operational_keys()],
    )
    return train(task, loader, config.training, run, stage="tower", seed=config.seed)
