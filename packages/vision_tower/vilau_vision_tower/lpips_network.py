"""The network of LPIPS (Zhang et al. 2018), version 0.1: the package's linear layers on torchvision's trunk."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from vilau_common.errors import UserError
from vilau_vision_tower.weights import read_weights, weights_file

# Trunks and the files that torchvision keeps their ImageNet weights in, named after their hashes.
TRUNK_FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
TRUNK_ADDRESS = "https://download.pytorch.org/models"


def trunk_file(network: str, weights: str | None, setting: str) -> Path:
    """Where a trunk's weights lie: the file `weights`, for None torchvision's own, downloaded once.

    setting: what names `weights`. Raises what `weights_file` does.
    """
    name = TRUNK_FILES[network]
    return weights_file(weights, f"{TRUNK_ADDRESS}/{name}", setting, Path(name).stem.rpartition("-")[2])


def load_lpips(network: str, file: Path, setting: str) -> nn.Module:
    """The distance, frozen: float [B, 3, H, W] twice, in [-1, 1] -> float [B, 1, 1, 1].

    network: a key of TRUNK_FILES; file: its weights. Raises UserError where these are none, or another network's.
    """
    import lpips  # here, because it brings scipy with it

    trunk = read_weights(file, setting)
    # On the meta device: nothing is drawn only to be replaced, and a run's random numbers stay as they are.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision in an outdated way
        model: nn.Module = lpips.LPIPS(net=network, pnet_rand=True, pretrained=False, verbose=False)
    # LPIPS cuts the trunk into slices, which keep torchvision's numbers: net.slice2.3.weight is features.3.weight.
    names = {
        name: "features." + name.split(".", 2)[2] for name in model.state_dict() if name.startswith("net.")
    }
    if missing := [original for original in names.values() if original not in trunk]:
        raise UserError(
            f"{setting}: {file} has no {missing[0]}; expected torchvision's weights of the network {network} "
            f"({TRUNK_FILES[network]})"
        )
    state = {name: trunk[original] for name, original in names.items()}
    try:
        model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise UserError(f"{setting}: {file} is of another network than {network}: {error}") from None
    linear = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{network}.pth"
    layers = torch.load(linear, map_location="cpu", weights_only=True)
    model.load_state_dict(layers, strict=False, assign=True)
    assert not any(weight.is_meta for weight in (*model.parameters(), *model.buffers()))
    return model.requires_grad_(False).eval()
