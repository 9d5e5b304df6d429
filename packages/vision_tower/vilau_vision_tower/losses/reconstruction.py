"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per picture, float [B], of images float [B, 3, H, W] in [-1, 1]."""
    mse = (images - reconstructions).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4.0 / mse)
