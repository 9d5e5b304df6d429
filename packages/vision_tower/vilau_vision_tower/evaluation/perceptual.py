"""LPIPS (Zhang et al. 2018): how far apart picture and reconstruction are in the features of a trained network."""

from __future__ import annotations

import torch

from vilau_common.errors import UserError
from vilau_vision_tower.evaluation.metric import EvaluatedBatch, Mean, Metric
from vilau_vision_tower.lpips_network import TRUNK_FILES, load_lpips, trunk_file

SETTING = "lpips_weights"


class LpipsMetric(Metric):
    """lpips_alex or lpips_vgg, the mean over pictures."""

    def __init__(self, network: str, weights: str | None, device: torch.device) -> None:
        """weights: a local file with torchvision's weights of the network; None: torchvision's download.

        UserError: unknown network, or a file that is not its weights. WeightsMissing: no weights can be had.
        """
        if network not in TRUNK_FILES:
            raise UserError(f"lpips={network}: the choices are {', '.join(TRUNK_FILES)}, and null for none")
        self.network = network
        self.model = load_lpips(network, trunk_file(network, weights, SETTING), SETTING).to(device)
        self.mean = Mean()

    def update(self, batch: EvaluatedBatch) -> None:
        self.mean.add(self.model(batch.reconstructions, batch.images))

    def result(self) -> dict[str, float]:
        return {f"lpips_{self.network}": self.mean.value()}
