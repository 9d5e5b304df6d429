"""The easy_vqa world: facts derived from questions, and the verifier against them."""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from vilau_common.data.worlds.easy_vqa.config import EasyVqaConfig
from vilau_common.data.worlds.easy_vqa.language import (
    COLOURS,
    SHAPES,
    derive_facts,
    parse_full,
    question_kind,
)
from vilau_common.data.worlds.easy_vqa.world import EasyVqaWorld
from vilau_common.data.worlds.registry import build_world
from vilau_common.data.worlds.scene import UNREADABLE, Scene, SceneObject, WorldSample
from vilau_common.errors import UserError

RED_CIRCLE = Scene((SceneObject("circle", "red"),))


@pytest.mark.parametrize(
    ("pairs", "facts"),
    [
        ([("what is the red shape?", "circle")], ("circle", "red")),
        ([("what color is the circle?", "red")], ("circle", "red")),
        ([("what color is the shape?", "red")], (None, "red")),
        ([("is there not a circle?", "no")], ("circle", None)),
        ([("is there a circle in the image?", "yes")], ("circle", None)),
        (
            [("is no triangle present?", "yes"), ("does the image contain a rectangle?", "no")],
            ("circle", None),
        ),
        ([("is there a triangle?", "no")], (None, None)),
    ],
)
def test_facts_follow_from_questions(
    pairs: list[tuple[str, str]], facts: tuple[str | None, str | None]
) -> None:
    assert derive_facts(pairs) == facts


@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        ("is there a red shape?", "yes", "exists"),
        ("is there not a red shape?", "yes", "absence"),
        ("is no red shape present?", "no", "absence"),
        ("what color is the shape?", "teal", "colour"),
        ("what is the teal shape?", "circle", "shape"),
    ],
)
def test_question_kinds(question: str, answer: str, kind: str) -> None:
    assert question_kind(question, answer) == kind


def test_all_test_questions_are_there(easy_vqa_test: list[WorldSample]) -> None:
    assert len(easy_vqa_test) == 1000
    kinds = Counter(question.kind for sample in easy_vqa_test for question in sample.questions)
    assert kinds.total() == 9673
    assert set(kinds) == {"colour", "shape", "exists", "absence"}
    assert all(sample.captions and sample.questions and sample.texts for sample in easy_vqa_test)


def test_captions_say_what_is_known(easy_vqa_world: EasyVqaWorld, easy_vqa_test: list[WorldSample]) -> None:
    known = [sample for sample in easy_vqa_test if sample.scene is not None]
    assert len(known) == 888
    for sample in known:
        assert sample.scene is not None
        (item,) = sample.scene.objects
        assert (
            sample.captions[0] == f"a {item.colour} {item.shape}"
        )  # the contrastive losses know equals by it
        assert all(easy_vqa_world.caption_right(caption, sample.scene) for caption in sample.captions)
    for sample in easy_vqa_test:
        if sample.scene is None:
            assert all(parse_full(caption) is None for caption in sample.captions)


def test_verifier_agrees_with_the_questions(
    easy_vqa_world: EasyVqaWorld,
    easy_vqa_test: list[WorldSample],
    degraded: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]],
) -> None:
    known = [(sample.image, sample.scene) for sample in easy_vqa_test if sample.scene is not None]
    images = np.stack([image for image, _ in known])
    for pictures, least in ((images, 0.99), (degraded(images), 0.97)):
        readings = easy_vqa_world.read(pictures)
        right = [easy_vqa_world.same(r, scene) for r, (_, scene) in zip(readings, known, strict=True)]
        assert np.mean(right) >= least


def test_verifier_agrees_with_partial_facts(
    easy_vqa_world: EasyVqaWorld, easy_vqa_test: list[WorldSample]
) -> None:
    """Every single question, also those of pictures that are not told in full, fits what is read."""
    readings = easy_vqa_world.read(np.stack([sample.image for sample in easy_vqa_test]))
    for sample, reading in zip(easy_vqa_test, readings, strict=True):
        (item,) = reading.objects
        shape, colour = derive_facts((q.question, q.answer) for q in sample.questions)
        assert shape in (None, item.shape) and colour in (None, item.colour)


def canvas(*boxes: tuple[slice, slice, tuple[int, int, int]]) -> npt.NDArray[np.uint8]:
    image = np.full((1, 32, 32, 3), 240, np.uint8)
    for rows, columns, colour in boxes:
        image[0, rows, columns] = colour
    return image


def disc(radius: float) -> npt.NDArray[np.float64]:
    y, x = np.mgrid[0:32, 0:32] + 0.5
    return np.clip(0.5 - (np.hypot(x - 16, y - 16) - radius), 0, 1)[None, ..., None]


RED = (255, 0, 0)


def shape_of(covered: npt.NDArray[np.bool_], colour: tuple[int, int, int] = RED) -> npt.NDArray[np.uint8]:
    """One picture of the pixels `covered`, bool [32, 32]."""
    image = canvas()
    image[0, covered] = colour
    return image


def around(y: float = 16, x: float = 16) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Every pixel's distance below and to the right of a point."""
    rows, columns = np.mgrid[0:32, 0:32] + 0.5
    return rows - y, columns - x


def test_an_edge_may_be_a_pixel_off(easy_vqa_world: EasyVqaWorld) -> None:
    y, x = around()
    leaning = (np.abs(y) < 6) & (np.abs(x + 0.12 * y) < 5)
    ragged = (np.abs(y) < 6) & (np.abs(x) < np.where(np.floor(y) % 3 == 0, 6, 5))
    flattened = (np.hypot(y, x) < 6.5) & (y > -5.6)
    for covered, shape in ((leaning, "rectangle"), (ragged, "rectangle"), (flattened, "circle")):
        assert easy_vqa_world.read(shape_of(covered)) == [Scene((SceneObject(shape, "red"),))]


def test_verifier_reads_a_plain_rectangle_and_nothing(easy_vqa_world: EasyVqaWorld) -> None:
    box = (slice(10, 20), slice(8, 22), (0, 128, 128))
    assert easy_vqa_world.read(canvas(box)) == [Scene((SceneObject("rectangle", "teal"),))]
    assert easy_vqa_world.read(canvas()) == [Scene(())]


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(
            canvas((slice(10, 20), slice(8, 15), (255, 0, 0)), (slice(10, 20), slice(15, 22), (0, 0, 255))),
            id="two colours",
        ),
        pytest.param(
            canvas((slice(4, 12), slice(4, 12), (255, 0, 0)), (slice(20, 28), slice(20, 28), (255, 0, 0))),
            id="two shapes",
        ),
        pytest.param(canvas((slice(10, 20), slice(8, 22), (255, 0, 255))), id="a colour not of the set"),
        pytest.param(
            (0.5 * canvas((slice(9, 23), slice(9, 23), (255, 0, 0))) + 0.5 * (240 + disc(7) * (255, -240, 0)))
            .clip(0, 255)
            .astype(np.uint8),
            id="half rectangle, half circle",
        ),
        pytest.param(shape_of(np.abs(around()[0]) + np.abs(around()[1]) < 8), id="a diamond"),
        pytest.param(shape_of(np.abs(np.hypot(*around()) - 6) < 2), id="a ring"),
        pytest.param(
            shape_of((np.minimum(*np.abs(around())) < 2.5) & (np.maximum(*np.abs(around())) < 8)),
            id="a cross",
        ),
        pytest.param(shape_of((np.hypot(*around()) < 8) & (around()[0] > 0)), id="half a disc"),
        pytest.param(
            shape_of((np.abs(around()[1]) < 8) & (np.abs(around()[0]) < 5) & (np.abs(around()[1]) > 1)),
            id="a rectangle in two",
        ),
        pytest.param(
            shape_of((np.hypot(*around()) < 6) | (np.maximum(*np.abs(around(4, 27))) < 1)), id="a stray mark"
        ),
        pytest.param(
            shape_of((np.abs(around()[0]) < 6) & (2 * np.abs(around()[1]) < 6 - around()[0])),
            id="a triangle on its head",
        ),
    ],
)
def test_what_is_not_one_plain_shape_is_not_read(
    easy_vqa_world: EasyVqaWorld, image: npt.NDArray[np.uint8]
) -> None:
    assert [item.shape for item in easy_vqa_world.read(image)[0].objects] == [UNREADABLE]


def test_hard_negatives(easy_vqa_world: EasyVqaWorld) -> None:
    negatives = easy_vqa_world.hard_negatives(RED_CIRCLE, "a circle that is red")
    assert len(negatives) == len(set(negatives)) == len(COLOURS) - 1 + len(SHAPES) - 1
    assert "a triangle that is red" in negatives and "a circle that is teal" in negatives


def test_prompts_can_be_judged(easy_vqa_world: EasyVqaWorld) -> None:
    (prompt,) = easy_vqa_world.drawing_prompts([RED_CIRCLE], seed=0, count=1)
    assert easy_vqa_world.judge(prompt, RED_CIRCLE).scene_right
    assert not easy_vqa_world.judge(prompt, Scene((SceneObject("circle", "blue"),))).scene_right


def test_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_easy_vqa(name: str, *arguments: object) -> object:
        if name == "easy_vqa":
            raise ImportError(name)
        return original(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_easy_vqa)
    world = build_world(EasyVqaConfig(test_limit=3))
    with pytest.raises(UserError, match="easy-vqa"):
        next(iter(world.splits()["test"]()))


def test_limits(easy_vqa_world: EasyVqaWorld) -> None:
    world = build_world(EasyVqaConfig(train_limit=7, image_size=48))
    samples = list(world.splits()["train"]())
    assert len(samples) == 7 and samples[0].image.shape == (48, 48, 3)
    with pytest.raises(UserError, match="test_limit"):
        build_world(EasyVqaConfig(test_limit=0))
