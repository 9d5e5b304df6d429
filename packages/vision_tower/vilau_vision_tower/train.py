"""`vilau train-tower`: the vision tower, from a CLIP."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from vilau_common import distributed
from vilau_common.config import config_to_dict
from vilau_common.data.loader import MAX_BAD_SHARE
from vilau_common.errors import UserError
from vilau_common.run import RunDirectory, seed_everything
from vilau_common.training import TrainingConfig, TrainingResult, operational_keys, train
from vilau_vision_tower.clip import load_pretrained
from vilau_vision_tower.clip.config import ClipConfig, OpenClipConfig, SiglipClipConfig
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.data import CaptionDataConfig, caption_loader, read_images
from vilau_vision_tower.decoder import ConvDecoderConfig, DecoderConfig, TransformerDecoderConfig
from vilau_vision_tower.losses import ContrastiveConfig, LpipsDistance, TowerLossConfig, build_perceptual
from vilau_vision_tower.quantizer import QUANTIZER_CONFIGS, AnyQuantizerConfig
from vilau_vision_tower.task import DISCRIMINATOR, TowerTask
from vilau_vision_tower.tower import VisionTower

SCHEMA_GROUPS = {
    "clip": {"siglip": SiglipClipConfig, "open_clip": OpenClipConfig},
    "tower/quantizer": QUANTIZER_CONFIGS,
    "tower/decoder": {"conv": ConvDecoderConfig, "transformer": TransformerDecoderConfig},
}

# Pictures of the test split that the training measures itself on; `vilau evaluate` takes all.
TEST_PICTURES = 256


@dataclass(kw_only=True)
class TowerConfig:
    """clip: what the tower starts from; its position embeddings are interpolated to data.image_size.

    gradient_checkpointing: of encoder and decoder; less memory, one more forward pass, the same gradients.
    """

    clip: ClipConfig
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
    """Train to the end, or go on; tower and text encoder land in <directory>/model.

    Raises UserError, before the directory is taken, for a configuration that cannot work.
    """
    _check_optimizers(config)
    config.tower.quantizer.check_training(distributed.world_size())
    if config.training.ema_decay is not None and config.tower.quantizer.follows_features():
        raise UserError(
            "training.ema_decay averages weights over steps, but these codebooks follow the present encoder's features "
            "step by step: an averaged encoder would read codes that were made for another one; set "
            "training.ema_decay=null, or tower.quantizer.codebook_update=gradient with restart_below=0, whose "
            "codebooks are averaged with the rest"
        )
    run = RunDirectory(config.directory)
    clip = load_pretrained(config.tower.clip, config.data.image_size)
    loader = caption_loader(config.data, clip.text.tokenizer, clip.text.length, config.seed, run.path)
    test_images = read_images(
        Path(config.data.directory) / "test", TEST_PICTURES, size=config.data.image_size
    )
    seed_everything(config.seed, distributed.rank())
    tower = VisionTower.from_clip(
        clip.vision,
        VisionTowerConfig(
            vision_config=clip.vision_config.to_dict(),
            image_mean=clip.image_mean,
            image_std=clip.image_std,
            quantizer=asdict(config.tower.quantizer),
            decoder=asdict(config.tower.decoder),
        ),
    )
    perceptual = build_perceptual(config.loss.perceptual, tower.encoder)  # which is CLIP still
    if config.tower.gradient_checkpointing:
        tower.activation_checkpointing_enable()
    contrastive = config.contrastive.with_own(clip.logit_scale, clip.logit_bias)
    task = TowerTask(
        tower,
        clip.text,
        contrastive,
        config.loss,
        test_images,
        perceptual,
        evaluation_batch=config.data.loader.batch_size,
    )
    # Files by what they hold: they may move between the starts of a run, and must not change.
    fingerprints = {"clip_fingerprint": clip.fingerprint}
    if isinstance(perceptual, LpipsDistance):
        fingerprints["lpips_fingerprint"] = perceptual.fingerprint
    # Last, so that a configuration that is refused does not take the directory.
    run.claim(
        {**config_to_dict(config), **fingerprints},
        ignore=[
            "directory",
            "tower.clip.pretrained",
            "tower.gradient_checkpointing",
            "loss.perceptual.weights",
            MAX_BAD_SHARE,
            *operational_keys(),
        ],
    )
    return train(task, loader, config.training, run, stage="tower", seed=config.seed)


def _check_optimizers(config: TrainTowerConfig) -> None:
    """The discriminator's settings, which must not silently be the tower's."""
    config.training.check_optimizers(TowerTask.other_optimizers)
    if config.loss.adversarial.weight and DISCRIMINATOR not in config.training.other_optimizers:
        raise UserError(
            f"loss.adversarial.weight is {config.loss.adversarial.weight}, but the discriminator has no optimiser: set "
            "+training.other_optimizers={discriminator: {learning_rate: 4e-5, betas: [0.5, 0.9]}} (RQ-VAE's)"
        )
