"""LPIPS (Zhang et al. 2018): how far apart picture and reconstruction are in the features of a trained network."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, VGG16_Weights

from vilau_common.errors import UserError
from vilau_vision_tower.evaluation.metric import EvaluatedBatch, Mean, Metric
from vilau_vision_tower.evaluation.weights import read_weights, weights_file

SETTING = "lpips_weights"
TRUNKS = {"alex": AlexNet_Weights.IMAGENET1K_V1.url, "vgg": VGG16_Weights.IMAGENET1K_V1.url}


class LpipsMetric(Metric):
    """lpips_alex or lpips_vgg, the mean over pictures; the linear layers are those of the package lpips, v0.1."""

    def __init__(self, network: str, weights: str | None, device: torch.device) -> None:
        """weights: a local file with torchvision's weights of the network; None: torchvision's download."""
        self.network = network
        self.model = load_lpips(network, weights).to(device)
        self.mean = Mean()

    def update(self, batch: EvaluatedBatch) -> None:
        self.mean.add(self.model(batch.reconstructions, batch.images))

    def result(self) -> dict[str, float]:
        return {f"lpips_{self.network}": self.mean.value()}


def load_lpips(network: str, weights: str | None) -> nn.Module:
    """The distance, frozen: float [B, 3, H, W] twice, in [-1, 1] -> float [B, 1, 1, 1].

    UserError: unknown network, or a file that is not its weights. NotComputed: no weights can be had.
    """
    import lpips  # here, because it brings scipy with it

    if network not in TRUNKS:
        raise UserError(f"lpips={network}: the choices are {', '.join(TRUNKS)}, and null for none")
    file = weights_file(weights, TRUNKS[network], SETTING)
    trunk = read_weights(file, SETTING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision in an outdated way
        model: nn.Module = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
    slices = model.get_submodule("net")
    # LPIPS cuts the trunk into slices, which keep torchvision's numbers: slice2.3.weight is features.3.weight.
    renamed: dict[str, Tensor] = {}
    for name in slices.state_dict():
        original = f"features.{name.partition('.')[2]}"
        if original not in trunk:
            raise UserError(
                f"{SETTING}: {file} has no {original}; expected torchvision's weights of {network}"
            )
        renamed[name] = trunk[original]
    try:
        slices.load_state_dict(renamed)
    except RuntimeError as error:
        raise UserError(f"{SETTING}: {file} is not torchvision's {network}: {error}") from None
    return model.requires_grad_(False).eval()
