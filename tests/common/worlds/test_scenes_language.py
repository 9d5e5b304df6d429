"""Captions, questions and hard negatives of the scenes world agree with the scenes they speak of."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict

import pytest

from vilau_common.data.worlds.scene import Question, Scene, SceneObject, WorldSample
from vilau_common.data.worlds.scenes.captions import KINDS, full_caption
from vilau_common.data.worlds.scenes.grammar import parse, parse_full
from vilau_common.data.worlds.scenes.words import (
    COLOURS,
    NUMBERS,
    PLACES,
    SHAPES,
    SIZES,
    relation_holds,
)
from vilau_common.data.worlds.scenes.world import ScenesWorld

Samples = dict[str, list[WorldSample]]
RED_CIRCLE = SceneObject("circle", "red", "small", "top left")
BLUE_SQUARE = SceneObject("square", "blue", "large", "centre")


def scene_of(sample: WorldSample) -> Scene:
    assert sample.scene is not None
    return sample.scene


def test_first_caption_says_all_and_every_caption_is_true(
    scenes_world: ScenesWorld, scenes_samples: Samples
) -> None:
    for sample in scenes_samples["train"][:500]:
        assert scenes_world.caption_right(sample.captions[0], scene_of(sample))
        for caption in sample.captions:
            required = parse(caption)
            assert required is not None, caption
            assert scenes_world.true_of(required, scene_of(sample)), caption


def test_one_or_two_objects_have_partial_captions_that_name_them_all(scenes_samples: Samples) -> None:
    for sample in scenes_samples["train"][:300]:
        partial = sample.captions[1:]
        assert len(partial) >= 2 or len(scene_of(sample).objects) == 3
        for caption in partial:
            required = parse(caption)
            assert required is not None and parse_full(caption) is None
            assert len(required) == len(scene_of(sample).objects), caption


def test_full_captions_have_several_wordings() -> None:
    scene = Scene((RED_CIRCLE, BLUE_SQUARE))
    captions = {full_caption(scene, random.Random(seed)) for seed in range(100)}
    assert "a small red circle at the top left and a large blue square at the centre" in captions
    assert len(captions) == 8  # four wordings, two orders
    assert {parse_full(caption) for caption in captions} == {scene, Scene((BLUE_SQUARE, RED_CIRCLE))}


def test_descriptions_are_in_reading_order_and_captions_in_any(scenes_samples: Samples) -> None:
    """Near misses of an ordered caption would often be out of order, and told without the picture."""
    ordered = []
    for sample in scenes_samples["train"][:300]:
        said, caption = parse_full(str(sample.description)), parse_full(sample.captions[0])
        assert said is not None and caption is not None and said.description() == caption.description()
        places, of_caption = ([PLACES.index(str(o.place)) for o in s.objects] for s in (said, caption))
        assert places == sorted(places), sample.description
        ordered.append(of_caption == sorted(of_caption))
    assert 0.4 < sum(ordered) / len(ordered) < 0.8  # one object always is, two are half of the time


@pytest.mark.parametrize(
    "caption",
    [
        "A small red circle at the top left  and a large blue square at the centre.",
        "there is a small red circle at the top left . there is a large blue square at the centre .",
        "at the top left a small red circle , at the centre a large blue square",
    ],
)
def test_spacing_and_case_do_not_matter(caption: str) -> None:
    assert parse_full(caption) == Scene((RED_CIRCLE, BLUE_SQUARE))


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a red circle at the top left",  # no size
        "a small red circle",  # no place
        "a small red circle at the top left and",
        "a small red circle at the top left a large blue square at the centre",
        "a small red circle at the top left and a large blue square at the top left",  # one place
        "a small pink circle at the top left",
        "at the left a small red circle at the top left",
        "# and #",
    ],
)
def test_what_is_no_full_caption_is_not_parsed(caption: str) -> None:
    assert parse_full(caption) is None


def test_hard_negatives_change_one_word_and_are_false(
    scenes_world: ScenesWorld, scenes_samples: Samples
) -> None:
    for sample in scenes_samples["test"][:100]:
        for caption in sample.captions:
            negatives = scenes_world.hard_negatives(scene_of(sample), caption)
            assert len(negatives) == len(set(negatives))
            for negative in negatives:
                required = parse(negative)
                assert required is not None
                assert not scenes_world.true_of(required, scene_of(sample))
                assert changed_words(caption, negative) == 1, (caption, negative)


def test_hard_negatives_of_a_full_caption_touch_every_attribute(scenes_world: ScenesWorld) -> None:
    negatives = scenes_world.hard_negatives(Scene((RED_CIRCLE,)), "a small red circle at the top left")
    assert len(negatives) == (len(SHAPES) - 1) + (len(COLOURS) - 1) + (len(SIZES) - 1) + (len(PLACES) - 1)
    two = scenes_world.hard_negatives(
        Scene((RED_CIRCLE, BLUE_SQUARE)),
        "a small red circle at the top left and a large blue square at the centre",
    )
    # A place that is taken is no sensible change, and "cyan square" is held out: negatives never name it.
    assert len(two) == 2 * (3 + 5 + 1 + 7) - 1
    assert not any("cyan square" in caption for caption in two)


def test_hard_negatives_can_be_sampled(scenes_world: ScenesWorld) -> None:
    scene, caption = Scene((RED_CIRCLE,)), "a small red circle at the top left"
    some = scenes_world.hard_negatives(scene, caption, 5, random.Random(0))
    assert len(set(some)) == 5
    assert set(some) < set(scenes_world.hard_negatives(scene, caption))
    assert some == scenes_world.hard_negatives(scene, caption, 5, random.Random(0))


def changed_words(one: str, other: str) -> int:
    """How many attributes differ, places being single words."""
    pattern = re.compile("|".join(sorted(PLACES, key=len, reverse=True)))
    first, second = (
        pattern.sub(lambda found: found[0].replace(" ", "_"), text).split() for text in (one, other)
    )
    assert len(first) == len(second)
    return sum(a != b for a, b in zip(first, second, strict=True))


def test_all_kinds_of_partial_captions_are_trained_on(scenes_samples: Samples) -> None:
    counted = sum(
        re.search(r"\b(two|three) ", caption) is not None
        for sample in scenes_samples["train"]
        for caption in sample.captions
    )
    related = sum(
        re.search(r" (left of|right of|above|below) ", caption) is not None
        for sample in scenes_samples["train"]
        for caption in sample.captions
    )
    assert counted > 0.05 * len(scenes_samples["train"])
    assert related > 0.05 * len(scenes_samples["train"])


def test_answers_are_right(scenes_samples: Samples) -> None:
    """Against an answerer that knows nothing of how the questions were made."""
    for split in ("train", "test_held_out"):
        for sample in scenes_samples[split][:400]:
            for question in sample.questions:
                assert question.answer == answer(question, scene_of(sample)), (question, sample.scene)


def test_question_kinds_and_yes_no_are_balanced(scenes_samples: Samples) -> None:
    """Of the first eight: a training picture's others are about relations."""
    questions = [question for sample in scenes_samples["train"] for question in sample.questions[:8]]
    kinds = Counter(question.kind for question in questions)
    assert len(questions) == 8 * len(scenes_samples["train"])
    assert set(kinds) == {"count", "colour", "shape", "size", "place", "exists", "relation", "what_at"}
    assert min(kinds.values()) > 0.05 * len(questions)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        answers[question.kind][question.answer] += 1
    for kind in ("exists", "relation"):
        assert abs(answers[kind]["yes"] / answers[kind].total() - 0.5) < 0.05
    assert 0.3 < answers["what_at"]["nothing"] / answers["what_at"].total() < 0.6


def test_training_pictures_have_more_relation_questions(scenes_samples: Samples) -> None:
    assert all(len(sample.questions) == 8 for sample in scenes_samples["test_held_out"])
    added = 0
    for sample in scenes_samples["train"]:
        more = sample.questions[8:]
        assert {question.kind for question in more} <= {"relation"}
        assert len({question.question for question in sample.questions}) == len(sample.questions)
        assert not more or len(scene_of(sample).objects) > 1
        added += len(more)
    assert added > 2 * len(scenes_samples["train"])  # two pictures of three have several objects


def test_statements_hold_no_known_falsehood(scenes_samples: Samples) -> None:
    texts = {text for sample in scenes_samples["train"] for text in sample.texts}
    assert len(texts) > 300
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    converses = 0
    for text in texts:
        match = re.fullmatch(
            r"if (the .+) is (\w+(?: of)?) (the .+), (the .+) is (\w+(?: of)?) (the .+)\.", text
        )
        if match is not None and " and " not in text:
            converses += 1
            assert (match[4], match[6]) == (match[3], match[1]) and opposite[match[2]] == match[5], text
        different = re.fullmatch(r"a (?:\w+ )?(\w+) is not (?:a )?(\w+)\.", text)
        if different is not None:
            assert different[2] not in text.split(" is not ")[0].split(), text
    assert converses > 50


SINGULAR = {"circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross"}
ATTRIBUTE_QUESTION = re.compile(
    r"(?:what (?:is the )?(?:colour|shape|size) (?:is|of)|how big is|where is) the (.+)"
)


def answer(question: Question, scene: Scene) -> str:
    text = question.question.removesuffix("?").replace("color", "colour")
    if text.startswith("how many "):
        *words, noun = text.removeprefix("how many ").removesuffix(" are there").split()
        return NUMBERS[len(matching(" ".join([*words, SINGULAR.get(noun, "object")]), scene))]
    if text.startswith("is there a "):
        wanted = text.removeprefix("is there a ").removesuffix(" in the picture")
        return "yes" if matching(wanted, scene) else "no"
    if question.kind == "relation":
        match = re.fullmatch(r"is the (.+?) (left of|right of|above|below) the (.+)", text)
        assert match is not None
        return "yes" if relation_holds(match[2], one(match[1], scene), one(match[3], scene)) else "no"
    if text.startswith("what is at the "):
        found = matching("object at the " + text.removeprefix("what is at the "), scene)
        return f"a {found[0].size} {found[0].colour} {found[0].shape}" if found else "nothing"
    asked = ATTRIBUTE_QUESTION.fullmatch(text)
    assert asked is not None, text
    return str(getattr(one(asked[1], scene), question.kind))


def matching(phrase: str, scene: Scene) -> list[SceneObject]:
    """The objects that a phrase without article fits."""
    name, _, place = phrase.partition(" at the ")
    words = [word for word in name.split() if word != "object"]
    assert all(word in (*SHAPES, *COLOURS, *SIZES) for word in words), phrase
    return [
        item
        for item in scene.objects
        if all(word in (item.shape, item.colour, item.size) for word in words) and place in ("", item.place)
    ]


def one(phrase: str, scene: Scene) -> SceneObject:
    (item,) = matching(phrase, scene)
    return item


def test_prompts_are_true_of_their_scenes_and_of_all_kinds(
    scenes_world: ScenesWorld, scenes_samples: Samples
) -> None:
    scenes = [scene_of(sample) for sample in scenes_samples["test"]]
    prompts = scenes_world.drawing_prompts(scenes, seed=0, count=140)
    assert prompts == scenes_world.drawing_prompts(scenes, seed=0, count=140)
    assert prompts != scenes_world.drawing_prompts(scenes, seed=1, count=140)
    assert Counter(prompt.kind for prompt in prompts) == dict.fromkeys(("scene", *KINDS), 20)
    for prompt in prompts:
        assert prompt.exact == (prompt.kind == "scene")
        assert any(scenes_world.judge(prompt, scene).scene_right for scene in scenes)
    assert scenes_world.drawing_prompts([], seed=0, count=10) == []
