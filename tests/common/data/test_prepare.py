from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vilau_common.data.fields import image_field, json_field
from vilau_common.data.prepare import PrepareConfig, prepare_world
from vilau_common.data.prepare import prepare as run_prepare
from vilau_common.data.shards import dataset_info, read_shards
from vilau_common.data.worlds.base import World, WorldConfig
from vilau_common.data.worlds.scene import Question, Scene, SceneObject, WorldSample
from vilau_common.data.worlds.scenes.config import ScenesConfig


@dataclasses.dataclass(kw_only=True)
class DotsConfig(WorldConfig):
    count: int = 7


class Dots(World):
    """A world as far as preparing needs one."""

    name = "dots"

    def __init__(self, config: DotsConfig) -> None:
        self.config, self.image_size, self.drawn = config, config.image_size, 0

    def splits(self) -> dict[str, Callable[[], Iterator[WorldSample]]]:
        return {"train": lambda: self._samples(self.config.count), "test": lambda: self._samples(2)}

    def _samples(self, count: int) -> Iterator[WorldSample]:
        for number in range(count):
            self.drawn += 1
            yield WorldSample(
                key=f"{number:04d}",
                image=np.full((self.image_size, self.image_size, 3), number, np.uint8),
                captions=[f"dot {number}"],
                questions=[Question("what?", "a dot", "what")],
                scene=Scene((SceneObject("dot", "grey"),)),
                texts=["dots are round"],
            )


Dots.__abstractmethods__ = frozenset()  # the verifier has no part here


def prepare(directory: Path, config: DotsConfig | None = None) -> tuple[Dots, dict[str, Path]]:
    config = config or DotsConfig(image_size=4)
    world = Dots(config)
    return world, prepare_world(
        world, config, directory, samples_per_shard=3, progress=lambda split, done: None
    )


def test_every_split_holds_its_samples(tmp_path: Path) -> None:
    _, splits = prepare(tmp_path)
    assert splits == {"train": tmp_path / "train", "test": tmp_path / "test"}
    samples = list(read_shards(splits["train"]))
    assert [key for key, _ in samples] == [f"{number:04d}" for number in range(7)]
    for number, (_, fields) in enumerate(samples):
        assert image_field(fields).shape == (4, 4, 3)
        assert image_field(fields).max() == number
        record = json_field(fields)
        assert record["captions"] == [f"dot {number}"]
        assert record["questions"] == [{"question": "what?", "answer": "a dot", "kind": "what"}]
        assert Scene.from_json(record["scene"]) == Scene((SceneObject("dot", "grey"),))
    assert dataset_info(splits["test"]).samples == 2


def test_only_what_is_missing_or_was_made_otherwise_is_made(tmp_path: Path) -> None:
    prepare(tmp_path)
    again, _ = prepare(tmp_path)
    assert again.drawn == 0
    (tmp_path / "test" / "dataset.json").unlink()
    repaired, _ = prepare(tmp_path)
    assert repaired.drawn == 2
    changed, _ = prepare(tmp_path, DotsConfig(image_size=4, count=5))
    assert changed.drawn == 7
    assert dataset_info(tmp_path / "train").samples == 5


def test_progress_ends_at_the_number_of_samples(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    config = DotsConfig(image_size=4, count=250)
    prepare_world(
        Dots(config), config, tmp_path, samples_per_shard=100, progress=lambda *call: calls.append(call)
    )
    assert calls == [("train", 100), ("train", 200), ("train", 250), ("test", 2)]


def test_documents_of_a_world_stand_beside_its_pictures_and_lend_their_words(tmp_path: Path) -> None:
    source = ScenesConfig(
        image_size=24, train_count=20, test_count=4, held_out_count=0, edit_count=200, document_test_count=3
    )
    config = PrepareConfig(directory=str(tmp_path), source=source, vocabulary_size=512, superwords=20)
    run_prepare(config)
    assert dataset_info(tmp_path / "edits" / "train").samples == 200
    assert dataset_info(tmp_path / "edits" / "test").samples == 3
    assert not (tmp_path / "videos").exists() and not (tmp_path / "edits" / "test_held_out").exists()
    known = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert "Ġremove" in known  # in instructions alone
    written = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.tar"))]
    run_prepare(config)
    assert written == [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.tar"))]
