"""Augmentation: what is shown stays whole, and the ground stays the ground."""

import numpy as np
import pytest

from vilau_common.data.augmentation import AugmentationConfig, augmented, moved, plain_margins
from vilau_common.errors import UserError

GROUND = 200


def picture(height: int, width: int, top: int, left: int, content: np.ndarray) -> np.ndarray:
    """`content` on a plain ground."""
    image = np.full((height, width, 3), GROUND, np.uint8)
    image[top : top + content.shape[0], left : left + content.shape[1]] = content
    return image


@pytest.fixture
def content() -> np.ndarray:
    return np.random.default_rng(1).integers(0, GROUND, (3, 2, 3), dtype=np.uint8)


def test_margins_are_the_plain_rows_and_columns(content: np.ndarray) -> None:
    assert plain_margins(picture(8, 10, 4, 1, content)) == (4, 1, 1, 7)


def test_a_picture_with_nothing_on_it_has_nothing_to_move() -> None:
    plain = np.full((4, 4, 3), GROUND, np.uint8)
    assert plain_margins(plain) == (0, 0, 0, 0)
    assert (moved(plain, np.random.default_rng(0)) == plain).all()


def test_a_picture_without_plain_margins_stays(content: np.ndarray) -> None:
    assert (moved(content, np.random.default_rng(0)) == content).all()


def test_content_moves_whole_to_every_place_that_holds_it(content: np.ndarray) -> None:
    image = picture(5, 4, 0, 2, content)
    wanted = {picture(5, 4, top, left, content).tobytes() for top in range(3) for left in range(3)}
    rng = np.random.default_rng(0)
    assert {moved(image, rng).tobytes() for _ in range(200)} == wanted


def test_each_change_comes_only_where_asked(content: np.ndarray) -> None:
    image = picture(5, 5, 0, 2, content)
    rng = np.random.default_rng(0)
    assert not AugmentationConfig().any()
    assert all((augmented(image, 5, AugmentationConfig(), rng) == image).all() for _ in range(20))
    flips = [augmented(image, 5, AugmentationConfig(horizontal_flip=True), rng) for _ in range(100)]
    mirrored = sum((each == image[:, ::-1]).all() for each in flips)
    assert 30 < mirrored < 70 and mirrored + sum((each == image).all() for each in flips) == 100
    both = [augmented(image, 5, AugmentationConfig(horizontal_flip=True, move=True), rng) for _ in range(200)]
    assert len({each.tobytes() for each in both}) == 24  # twelve places, two ways round


def test_random_parts_of_pictures_of_any_size_are_taken_where_asked() -> None:
    image = np.random.default_rng(0).integers(256, size=(12, 30, 3), dtype=np.uint8)
    config = AugmentationConfig(random_crop_scale=0.3)
    assert config.any()
    rng = np.random.default_rng(0)
    parts = [augmented(image, 8, config, rng) for _ in range(20)]
    assert all(part.shape == (8, 8, 3) and part.dtype == np.uint8 for part in parts)
    assert len({part.tobytes() for part in parts}) > 15
    again = np.random.default_rng(0)
    assert all((augmented(image, 8, config, again) == part).all() for part in parts)


@pytest.mark.parametrize("scale", [0.0, -0.5, 1.1])
def test_a_share_of_the_picture_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="augmentation.random_crop_scale is"):
        AugmentationConfig(random_crop_scale=scale)
