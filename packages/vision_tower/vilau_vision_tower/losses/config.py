"""What each of the tower's losses weighs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vilau_vision_tower.losses.adversarial import AdversarialConfig
from vilau_vision_tower.losses.perceptual import PerceptualConfig


@dataclass(kw_only=True)
class TowerLossConfig:
    """One weight a term: total = sum of weight * term.

    l1, l2: pixel differences of images in [-1, 1]. contrastive: its kind is `contrastive.kind`; at 0 the text encoder
    does not run. commitment: of the encoder to the codes. codebook: trains the quantiser's codes by gradient (0 where
    there is nothing to train so, as of EMA codebooks). perceptual and adversarial are sections with a `weight` each.
    """

    l1: float = 0.0
    l2: float = 1.0
    contrastive: float = 1.0
    commitment: float = 0.25
    codebook: float = 1.0
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)

    def weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of scalar `terms`, named as the weights are."""
        return torch.stack([self.weight_of(name) * term for name, term in terms.items()]).sum()

    def weight_of(self, name: str) -> float:
        """The weight of the term `name`."""
        value = getattr(self, name)
        return float(value.weight if isinstance(value, PerceptualConfig | AdversarialConfig) else value)
