"""Perceptual distances: how far apart two pictures are in the features of a frozen network.

    d(x, y) = sum or mean over layers of  mean over places of  sum over channels of  w * (f_l(x) - f_l(y))^2

with f_l unit vectors over channels (LPIPS; Zhang et al. 2018, equation 1). `lpips` takes VGG-16 or AlexNet and the
published w; `clip` takes the image encoder that the tower starts from, w = 1, and needs no download.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilau_common.errors import UserError
from vilau_common.fingerprint import weights_fingerprint
from vilau_vision_tower.clip.image import ImageEncoder
from vilau_vision_tower.lpips_network import TRUNK_FILES, load_lpips, trunk_file
from vilau_vision_tower.weights import WeightsMissing

KINDS = ("none", "lpips", "clip")
SETTING = "loss.perceptual.weights"
# Where nothing else is said, CLIP's features are taken after these shares of its layers.
LAYER_SHARES = (0.25, 0.5, 0.75)


@dataclass(kw_only=True)
class PerceptualConfig:
    """kind: none, lpips or clip. weight: of the term; 0 is as kind none.

    lpips: network is vgg (RQ-VAE's) or alex; weights is a local file with torchvision's weights of that network, null
    takes torchvision's own copy, which it downloads once.
    clip: clip_layers are the layers after which the features are taken, counted from 1; none given takes those at a
    quarter, half and three quarters of the depth.
    """

    kind: str = "none"
    weight: float = 1.0
    network: str = "vgg"
    weights: str | None = None
    clip_layers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"loss.perceptual.kind is {self.kind!r}; the choices are {', '.join(KINDS)}")
        if self.network not in TRUNK_FILES:
            raise UserError(
                f"loss.perceptual.network is {self.network!r}; the choices are {', '.join(TRUNK_FILES)}"
            )


def build_perceptual(config: PerceptualConfig, clip: ImageEncoder) -> LpipsDistance | ClipDistance | None:
    """The distance that `config` describes, frozen; None where there is none. `clip` is copied: it may go on to train.

    Raises UserError where weights are missing.
    """
    if not config.weight:
        return None
    if config.kind == "lpips":
        return LpipsDistance(config.network, config.weights)
    if config.kind == "clip":
        return ClipDistance(clip, config.clip_layers)
    return None


class LpipsDistance(nn.Module):
    """LPIPS, frozen. weights: a file with those of `network`; None: torchvision's own copy."""

    def __init__(self, network: str = "vgg", weights: str | None = None) -> None:
        super().__init__()
        try:
            file = trunk_file(network, weights, SETTING)
        except WeightsMissing as error:
            raise WeightsMissing(f"{error}, or take loss.perceptual.kind=clip, which needs none") from None
        self.fingerprint = weights_fingerprint(file)
        self.network = load_lpips(network, file, SETTING)

    def forward(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """Both float [B, 3, H, W] in [-1, 1] -> mean distance, a scalar."""
        return self.network(reconstructions, images).mean()


class ClipDistance(nn.Module):
    """Mean squared difference of CLIP's unit-length features at the patches, frozen; between 0 and 4.

    The features after layer l are what layer l + 1 reads, behind its norm: the residual stream itself is ruled by a
    few huge channels, which tell pictures apart badly.
    """

    def __init__(self, encoder: ImageEncoder, layers: list[int]) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        depth = len(encoder.layers)
        self.layers = frozenset(layers or (max(1, round(share * depth)) for share in LAYER_SHARES))
        if not self.layers <= set(range(1, depth + 1)):
            raise UserError(
                f"loss.perceptual.clip_layers is {layers}, but this CLIP has the layers 1 to {depth}"
            )

    def forward(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """Both float [B, 3, H, W] in [-1, 1] -> mean distance, a scalar."""
        pairs = zip(self.features(reconstructions), self.features(images), strict=True)
        return torch.stack([(a - b).square().sum(dim=-1).mean() for a, b in pairs]).mean()

    def features(self, images: Tensor) -> list[Tensor]:
        """float [B, 3, H, W] -> unit vectors of each layer, float [B, positions, width]."""
        features = []
        tokens = self.encoder.embed(self.encoder.normalized(images))
        for number in range(1, max(self.layers) + 1):
            tokens = self.encoder.run(self.encoder.layers[number - 1], tokens)
            if number in self.layers:
                patches = tokens[:, self.encoder.prefix_tokens :]
                features.append(F.normalize(self.encoder.norms[number - 1](patches), dim=-1))
        return features
