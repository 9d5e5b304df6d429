"""The adversarial loss of VQGAN (Esser et al. 2021, section 3.1): a discriminator tells pictures from
reconstructions, and the tower learns to deceive it.

    discriminator:  1/2 E[max(0, 1 - D(x))] + 1/2 E[max(0, 1 + D(x^))]      (hinge)
    tower:          -E[D(x^)], scaled, where `adaptive` is on, by |dL_rec/dW| / (|dL_adv/dW| + 1e-4)

with W the decoder's last weight and L_rec the weighted sum of pixel and perceptual terms (their equations 6, 7).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilau_common import distributed
from vilau_common.errors import UserError
from vilau_vision_tower.discriminator import DiscriminatorConfig, PatchDiscriminator

# VQGAN's code (losses/vqperceptual.py): keeps the adaptive weight finite, and its upper bound.
NORM_EPSILON = 1e-4
LARGEST_SCALE = 1e4


@dataclass(kw_only=True)
class AdversarialConfig:
    """weight: of the tower's term (RQ-VAE: 0.75); 0 means that there is no discriminator.

    start_step: the first step with the discriminator; before it the discriminator is not run. adaptive: balance the
    term against the reconstruction's gradient, at one more backward pass through the discriminator and the perceptual
    distance. The discriminator's optimiser is `training.other_optimizers.discriminator`.
    """

    weight: float = 0.0
    start_step: int = 0
    adaptive: bool = False
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        if self.weight < 0 or self.start_step < 0:
            raise UserError(
                "loss.adversarial.weight and start_step must be 0 or more, "
                f"not {self.weight} and {self.start_step}"
            )


class AdversarialLoss(nn.Module):
    """The discriminator, and what it and the tower learn from it.

    Neither loss has a way back to the other's weights, so that they may be summed, or go backward in any order.
    """

    def __init__(self, config: AdversarialConfig, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.discriminator = PatchDiscriminator(config.discriminator, image_size)

    def active(self, step: int) -> bool:
        """Whether the discriminator takes part in the step after `step` finished ones."""
        return step >= self.config.start_step

    def of_tower(self, reconstruction: Tensor) -> Tensor:
        """The tower's term, a scalar; reconstruction: float [B, 3, H, W]."""
        frozen = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        return -torch.func.functional_call(self.discriminator, frozen, (reconstruction,)).mean()

    def of_discriminator(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """The discriminator's own loss, a scalar; both are float [B, 3, H, W]."""
        real, fake = self.discriminator(torch.cat([images, reconstruction.detach()])).chunk(2)
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2

    def scale(self, reconstruction_loss: Tensor, adversarial: Tensor, last_weight: Tensor) -> Tensor:
        """What the tower's term is multiplied by beside its weight, float [] without a gradient.

        last_weight: the decoder's, to which both losses have a way back. Gradients are averaged over processes first,
        so that all take one scale, that of the joint batch.
        """
        if not self.config.adaptive:
            return torch.ones_like(adversarial)
        norms = []
        for loss in (reconstruction_loss, adversarial):
            (gradient,) = torch.autograd.grad(loss, last_weight, retain_graph=True)
            norms.append((distributed.sum_(gradient) / distributed.world_size()).norm())
        return (norms[0] / (norms[1] + NORM_EPSILON)).clamp(max=LARGEST_SCALE)
