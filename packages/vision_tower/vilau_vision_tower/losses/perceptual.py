"""Perceptual distances: how far apart two pictures are in the features of a frozen network.

    d(x, y) = sum or mean over layers of  mean over places of  sum over channels of  w * (f_l(x) - f_l(y))^2

with f_l unit vectors over channels (LPIPS; Zhang et al. 2018, equation 1). `lpips` takes VGG-16 or AlexNet and the
published w; `clip` takes the image encoder that the tower starts from, w = 1, and needs no download.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilau_common.errors import UserError
from vilau_vision_tower.clip.image import ImageEncoder

KINDS = ("none", "lpips", "clip")
# Trunks of LPIPS and the files that torchvision keeps their ImageNet weights in.
TRUNK_FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
TRUNK_ADDRESS = "https://download.pytorch.org/models"
# Where nothing else is said, CLIP's features are taken after these shares of its layers.
LAYER_SHARES = (0.25, 0.5, 0.75)


@dataclass(kw_only=True)
class PerceptualConfig:
    """kind: none, lpips or clip. weight: of the term.

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
    """The distance that `config` describes, frozen; None for kind=none. `clip` is copied: it may go on to train.

    Raises UserError where weights are missing.
    """
    if config.kind == "lpips":
        return LpipsDistance(config.network, config.weights)
    if config.kind == "clip":
        return ClipDistance(clip, config.clip_layers)
    return None


class LpipsDistance(nn.Module):
    """LPIPS of the package `lpips` (version 0.1), frozen."""

    def __init__(self, network: str = "vgg", weights: str | None = None) -> None:
        super().__init__()
        self.network = _load_lpips(network, weights).requires_grad_(False).eval()

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


def _load_lpips(network: str, weights: str | None) -> nn.Module:
    """LPIPS with the trunk's weights from a file and the package's own linear layers."""
    import lpips  # here, because it brings scipy with it

    # On the meta device: nothing is drawn only to be replaced, and the run's random numbers stay as they are.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision in an outdated way
        model: nn.Module = lpips.LPIPS(net=network, pnet_rand=True, pretrained=False, verbose=False)
    linear = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{network}.pth"
    trunk, file = _trunk_weights(network, weights), weights or TRUNK_FILES[network]
    # LPIPS cuts the trunk into slices, which keep torchvision's numbers: net.slice2.3.weight is features.3.weight.
    names = {
        name: "features." + name.split(".", 2)[2] for name in model.state_dict() if name.startswith("net.")
    }
    if missing := [original for original in names.values() if original not in trunk]:
        raise UserError(
            f"loss.perceptual.weights: {file} has no {missing[0]}; expected torchvision's weights of the network "
            f"{network} ({TRUNK_FILES[network]})"
        )
    state = {name: trunk[original] for name, original in names.items()}
    try:
        model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"loss.perceptual.weights: {file} is of another network than {network}: {error}"
        ) from None
    lins = torch.load(linear, map_location="cpu", weights_only=True)
    model.load_state_dict(lins, strict=False, assign=True)
    assert not any(weight.is_meta for weight in (*model.parameters(), *model.buffers()))
    return model


def _trunk_weights(network: str, file: str | None) -> dict[str, Tensor]:
    """torchvision's weights of an LPIPS trunk: from `file`, or from torchvision's cache, which downloads them once."""
    if file is not None:
        try:
            trunk: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(
                f"loss.perceptual.weights: {file} cannot be read as torchvision's weights of {network} "
                f"({TRUNK_FILES[network]}): {str(error).splitlines()[0]}"
            ) from None
        return trunk
    name = TRUNK_FILES[network]
    try:
        return torch.hub.load_state_dict_from_url(
            f"{TRUNK_ADDRESS}/{name}", map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except OSError as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"loss.perceptual.kind=lpips needs {TRUNK_ADDRESS}/{name}, which could not be downloaded ({error}): bring "
            f"the file to {cache} or name it with loss.perceptual.weights=FILE, or take loss.perceptual.kind=clip, "
            "which needs none"
        ) from None
