"""Documents of several pictures: splits, determinism, what their records tell."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from vilau_common.data.worlds.scene import WorldDocument
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.shots import NAMES
from vilau_common.data.worlds.scenes.stories import scenes_told
from vilau_common.data.worlds.scenes.world import ScenesWorld
from vilau_common.errors import UserError

KINDS = ("videos", "edits", "shots", "stories")
SPLITS = ("train", "test", "test_held_out")
COUNTS = {"video_count": 150, "edit_count": 150, "shots_count": 150, "story_count": 150}
Documents = dict[str, list[WorldDocument]]


def world_with(**settings: int) -> ScenesWorld:
    return ScenesWorld(ScenesConfig(**{**COUNTS, "document_test_count": 60, **settings}))


@pytest.fixture(scope="module")
def documents() -> Documents:
    return {name: list(start()) for name, (_, start) in world_with().documents().items()}


def shown(documents: list[WorldDocument], world: ScenesWorld) -> set[frozenset[object]]:
    """The descriptions of all pictures."""
    images = np.concatenate([document.images for document in documents])
    return {frozenset(scene.objects) for scene in world.read(images)}


def test_each_kind_has_all_splits_of_the_sizes_told(documents: Documents) -> None:
    assert set(documents) == {f"{kind}/{split}" for kind in KINDS for split in SPLITS}
    for name, (count, _) in world_with().documents().items():
        assert len(documents[name]) == count == (150 if name.endswith("/train") else 60)
        for document in documents[name]:
            assert len(document.images) == document.record["pictures"]
    assert not ScenesWorld(ScenesConfig()).documents()
    assert set(world_with(shots_count=0, held_out_count=0).documents()) == {
        f"{kind}/{split}" for kind in ("videos", "edits", "stories") for split in ("train", "test")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_training_documents_show_training_pictures_alone(kind: str, documents: Documents) -> None:
    world = world_with()
    train = shown(documents[f"{kind}/train"], world)
    for still in islice(world.splits()["test"](), 300):
        assert still.scene is not None
        assert frozenset(still.scene.objects) not in train
    held_out = world.config.pairs()
    for split in ("train", "test"):
        for objects in shown(documents[f"{kind}/{split}"], world):
            assert not {(item.colour, item.shape) for item in objects} & held_out  # type: ignore[attr-defined]
    for document in documents[f"{kind}/test_held_out"]:
        pairs = {(item.colour, item.shape) for scene in world.read(document.images) for item in scene.objects}
        assert pairs & held_out


def test_documents_repeat_exactly_and_do_not_depend_on_the_count(documents: Documents) -> None:
    again = world_with(video_count=7, edit_count=7, shots_count=7, story_count=7).documents()
    for name, (_, start) in again.items():
        for document, expected in zip(start(), documents[name], strict=False):
            assert document.key == expected.key
            assert np.array_equal(document.images, expected.images)
            assert json.dumps(document.record) == json.dumps(expected.record)
    other = world_with(seed=1).documents()
    for name, (_, start) in other.items():
        same = [a.record == b.record for a, b in zip(start(), documents[name], strict=True)]
        assert sum(same) < 0.3 * len(same), name


def test_names_of_shots_are_told_by_the_shots_alone(documents: Documents) -> None:
    world = world_with()
    used = Counter[tuple[str, str]]()
    for document in documents["shots/train"]:
        turns = [turn["text"] for turn in document.record["conversation"]]
        labels, rule = turns[1::2], document.record["rule"]
        objects = [scene.objects[0] for scene in world.read(document.images)]
        assert labels == [rule["names"][getattr(item, rule["attribute"])] for item in objects]
        assert set(labels[:2]) == set(rule["names"].values())
        assert len(labels) == 5
        used.update(rule["names"].items())
    # Every value gets every name: what a picture shows does not tell what it is called.
    assert len({value for value, _ in used}) == 10
    assert {name for _, name in used} == set(NAMES)
    assert max(used.values()) < 0.25 * len(documents["shots/train"])


def test_stories_show_what_they_tell(documents: Documents) -> None:
    world = world_with()
    for document in documents["stories/test"]:
        texts = [text.strip() for text in document.record["interleaved"].split("<image>")]
        assert texts.pop() == ""
        for scene, reading in zip(scenes_told(texts), world.read(document.images), strict=True):
            assert scene is not None
            assert world.same(reading, scene)


def test_counts_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="data.video_count is -1"):
        world_with(video_count=-1)
