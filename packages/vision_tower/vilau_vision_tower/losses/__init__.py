"""The tower's losses (VILA-U, section 3.1), one a file; `TowerLossConfig` weighs them."""

from vilau_vision_tower.losses.adversarial import AdversarialConfig, AdversarialLoss
from vilau_vision_tower.losses.config import TowerLossConfig
from vilau_vision_tower.losses.contrastive import ContrastiveConfig, ContrastiveLoss
from vilau_vision_tower.losses.perceptual import (
    ClipDistance,
    LpipsDistance,
    PerceptualConfig,
    build_perceptual,
)
from vilau_vision_tower.losses.reconstruction import psnr

__all__ = [
    "AdversarialConfig",
    "AdversarialLoss",
    "ClipDistance",
    "ContrastiveConfig",
    "ContrastiveLoss",
    "LpipsDistance",
    "PerceptualConfig",
    "TowerLossConfig",
    "build_perceptual",
    "psnr",
]
