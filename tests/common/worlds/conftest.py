"""Small worlds, drawn once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from vilau_common.data.worlds.easy_vqa.config import EasyVqaConfig
from vilau_common.data.worlds.easy_vqa.world import EasyVqaWorld
from vilau_common.data.worlds.scene import WorldSample
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.world import ScenesWorld

NOISE = 13.0  # standard deviation, of 255


@pytest.fixture(scope="session")
def scenes_world() -> ScenesWorld:
    return ScenesWorld(ScenesConfig(train_count=1500, test_count=300, held_out_count=100))


@pytest.fixture(scope="session")
def scenes_samples(scenes_world: ScenesWorld) -> dict[str, list[WorldSample]]:
    return {split: list(start()) for split, start in scenes_world.splits().items()}


@pytest.fixture(scope="session")
def easy_vqa_world() -> EasyVqaWorld:
    pytest.importorskip("easy_vqa")
    return EasyVqaWorld(EasyVqaConfig())


@pytest.fixture(scope="session")
def easy_vqa_test(easy_vqa_world: EasyVqaWorld) -> list[WorldSample]:
    return list(easy_vqa_world.splits()["test"]())


@pytest.fixture(scope="session")
def degraded() -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]:
    """Makes about 25 dB pictures, blurred by half a pixel and noisy; checks that they are that bad."""

    def degrade(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        blurred = images.astype(np.float64)
        for axis in (1, 2):
            blurred = 0.7 * blurred + 0.15 * (_shifted(blurred, 1, axis) + _shifted(blurred, -1, axis))
        noisy = blurred + np.random.default_rng(0).normal(0, NOISE, images.shape)
        result = np.clip(np.rint(noisy), 0, 255)
        assert 24 < -10 * np.log10(np.square((result - images) / 255).mean()) < 28
        return np.asarray(result, dtype=np.uint8)

    return degrade


def _shifted(images: npt.NDArray[np.float64], by: int, axis: int) -> npt.NDArray[np.float64]:
    """Moved by one pixel, the edge repeated."""
    index = np.clip(np.arange(images.shape[axis]) - by, 0, images.shape[axis] - 1)
    return images.take(index, axis=axis)
