"""The scenes verifier reads true pictures, sharp or degraded, and refuses what is not quite an object."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from vilau_common.data.worlds.scene import UNREADABLE, Scene, SceneObject, WorldSample
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.drawing import BACKGROUND, Placement, draw
from vilau_common.data.worlds.scenes.world import ScenesWorld
from vilau_common.errors import UserError

Images = npt.NDArray[np.uint8]
Degrade = Callable[[Images], Images]
CENTRE = 16  # of a picture of 32 pixels
CIRCLE = SceneObject("circle", "red", "large", "centre")
UNMOVED = Placement()


def accuracy(world: ScenesWorld, images: Images, samples: list[WorldSample]) -> float:
    readings = world.read(images)
    right = [
        sample.scene is not None and world.same(reading, sample.scene)
        for reading, sample in zip(readings, samples, strict=True)
    ]
    return float(np.mean(right))


def picture(item: SceneObject, placement: Placement = UNMOVED) -> npt.NDArray[np.float64]:
    return draw([Scene((item,))], [[placement]], 32)[0].astype(np.float64)


def read_one(world: ScenesWorld, image: npt.NDArray[np.float64]) -> tuple[SceneObject, ...]:
    return world.read(np.rint(image).astype(np.uint8)[None])[0].objects


@pytest.mark.parametrize("split", ["test", "test_held_out"])
def test_reads_true_pictures(
    scenes_world: ScenesWorld, scenes_samples: dict[str, list[WorldSample]], degraded: Degrade, split: str
) -> None:
    samples = scenes_samples[split]
    images = np.stack([sample.image for sample in samples])
    assert accuracy(scenes_world, images, samples) >= 0.99
    assert accuracy(scenes_world, degraded(images), samples) >= 0.97


@pytest.mark.parametrize("size", [24, 36, 48])
def test_reads_other_sizes(degraded: Degrade, size: int) -> None:
    world = ScenesWorld(ScenesConfig(image_size=size, test_count=150))
    samples = list(world.splits()["test"]())
    images = np.stack([sample.image for sample in samples])
    assert accuracy(world, images, samples) >= 0.99
    assert accuracy(world, degraded(images), samples) >= 0.97


def test_an_empty_picture_is_an_empty_scene(scenes_world: ScenesWorld, degraded: Degrade) -> None:
    blank = np.full((1, 32, 32, 3), round(BACKGROUND * 255), np.uint8)
    assert scenes_world.read(blank) == [Scene(())]
    assert scenes_world.read(degraded(blank)) == [Scene(())]


def half_and_half(left: SceneObject, right: SceneObject) -> npt.NDArray[np.float64]:
    image = picture(left)
    image[:, CENTRE:] = picture(right)[:, CENTRE:]
    return image


def with_hole() -> npt.NDArray[np.float64]:
    image = picture(CIRCLE)
    image[CENTRE - 1 : CENTRE + 2, CENTRE - 1 : CENTRE + 2] = BACKGROUND * 255
    return image


BLUE_CIRCLE = SceneObject("circle", "blue", "large", "centre")
GREEN_CIRCLE = SceneObject("circle", "green", "large", "centre")
RED_SQUARE = SceneObject("square", "red", "large", "centre")
SMALL_CIRCLE = SceneObject("circle", "red", "small", "centre")


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(half_and_half(CIRCLE, BLUE_CIRCLE), id="half red, half blue"),
        pytest.param(half_and_half(CIRCLE, RED_SQUARE), id="half circle, half square"),
        pytest.param((picture(CIRCLE) + picture(GREEN_CIRCLE)) / 2, id="a colour between two"),
        pytest.param((picture(CIRCLE) + picture(RED_SQUARE)) / 2, id="a shape between two"),
        pytest.param((picture(CIRCLE) + picture(SMALL_CIRCLE)) / 2, id="a size between two, soft"),
        pytest.param(picture(CIRCLE, Placement(scale=0.83)), id="a size between two"),
        pytest.param(picture(CIRCLE, Placement(shift_x=0.25)), id="off its place"),
        pytest.param((picture(CIRCLE) + BACKGROUND * 255) / 2, id="half faded"),
        pytest.param(picture(CIRCLE).mean(axis=2, keepdims=True).repeat(3, axis=2), id="grey"),
        pytest.param(with_hole(), id="with a hole"),
    ],
)
def test_what_is_not_quite_an_object_is_unreadable(
    scenes_world: ScenesWorld, image: npt.NDArray[np.float64]
) -> None:
    assert UNREADABLE in [item.shape for item in read_one(scenes_world, image)]


def test_a_stray_mark_counts_as_an_object(scenes_world: ScenesWorld) -> None:
    image = picture(CIRCLE)
    image[3:5, 3:5] = 0
    assert [item.shape for item in read_one(scenes_world, image)] == [UNREADABLE, "circle"]


def test_reading_does_not_depend_on_the_batch(
    scenes_world: ScenesWorld, scenes_samples: dict[str, list[WorldSample]]
) -> None:
    images = np.stack([sample.image for sample in scenes_samples["test"]])
    assert scenes_world.read(images[40:50]) == scenes_world.read(images)[40:50]


def test_wrong_pictures_are_told(scenes_world: ScenesWorld) -> None:
    with pytest.raises(UserError, match=r"\[B, 32, 32, 3\]"):
        scenes_world.read(np.zeros((1, 48, 48, 3), np.uint8))
