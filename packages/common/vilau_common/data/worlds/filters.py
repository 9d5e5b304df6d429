"""Small image filters that the verifiers share; all take and give float32."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

FloatArray = npt.NDArray[np.float32]

GAUSSIAN_REACH = 2.5  # standard deviations; the rest of a Gaussian, about 1 %, is cut


def local_mean(maps: FloatArray) -> FloatArray:
    """Mean over 3x3 pixels of maps [..., h, w], the edge repeated: the same shape."""
    padded = np.pad(maps, [(0, 0)] * (maps.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    tall = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    total = tall[..., :-2] + tall[..., 1:-1] + tall[..., 2:]
    return np.asarray(total / 9, dtype=np.float32)


def local_extremes(maps: FloatArray, reach: int) -> tuple[FloatArray, FloatArray]:
    """Least and greatest value within `reach` pixels, diagonals too, of maps [..., h, w]: the same shape each."""
    padded = np.pad(maps, [(0, 0)] * (maps.ndim - 2) + [(reach, reach)] * 2, mode="edge")
    windows = sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1), axis=(-2, -1))
    return windows.min(axis=(-2, -1)), windows.max(axis=(-2, -1))


def largest_local_mean(values: FloatArray) -> FloatArray:
    """The greatest length of a colour difference averaged over 3x3 pixels, [B]; values [B, h, w, 3].

    Pixel noise averages out, structure (a stray mark, a wrong half) stays. Only whole neighbourhoods count:
    one pixel at the edge, repeated, would weigh three times.
    """
    mean = local_mean(np.moveaxis(values, 3, 1))[..., 1:-1, 1:-1]
    return np.asarray(np.sqrt(np.square(mean).sum(axis=1).max(axis=(1, 2))), dtype=np.float32)


def gaussian_blur(maps: FloatArray, sigma: float) -> FloatArray:
    """Maps [..., h, w] blurred with a Gaussian of `sigma` pixels (0: unchanged), zero around them."""
    if sigma == 0:
        return maps
    reach = math.ceil(GAUSSIAN_REACH * sigma)
    weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma))
    weights = (weights / weights.sum()).astype(np.float32)
    height, width = maps.shape[-2:]
    tall = np.pad(maps, [(0, 0)] * (maps.ndim - 2) + [(reach, reach), (0, 0)])
    blurred = np.zeros_like(maps)
    for step, weight in enumerate(weights):
        blurred += weight * tall[..., step : step + height, :]
    wide = np.pad(blurred, [(0, 0)] * (maps.ndim - 1) + [(reach, reach)])
    result = np.zeros_like(maps)
    for step, weight in enumerate(weights):
        result += weight * wide[..., step : step + width]
    return result
