"""How close reconstructions come in pixels: PSNR and SSIM (Wang et al. 2004), means over pictures."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vilau_vision_tower.evaluation.metric import EvaluatedBatch, Mean, Metric
from vilau_vision_tower.losses import psnr

# Equal pictures have none; one of them must not make the mean infinite.
HIGHEST_PSNR = 100.0


class PixelMetrics(Metric):
    """psnr in dB, of RGB pixels; ssim with its authors' window (Gaussian, 11 pixels, sigma 1.5), of RGB channels."""

    def __init__(self) -> None:
        self.psnr, self.ssim = Mean(), Mean()

    def update(self, batch: EvaluatedBatch) -> None:
        self.psnr.add(psnr(batch.images, batch.reconstructions).clamp(max=HIGHEST_PSNR))
        # In [0, 1], as defined: SSIM's brightness term depends on where black lies.
        images, again = (batch.images + 1) / 2, (batch.reconstructions + 1) / 2
        ssim = structural_similarity_index_measure(again, images, data_range=1.0, reduction="none")
        assert isinstance(ssim, Tensor)  # and no second picture, which it gives where it is asked to
        self.ssim.add(ssim)

    def result(self) -> dict[str, float]:
        return {"psnr": self.psnr.value(), "ssim": self.ssim.value()}
