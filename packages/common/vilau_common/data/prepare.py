"""Turning a built-in world into data sets that trainings and evaluations read."""

from __future__ import annotations

import dataclasses
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vilau_common import atomic
from vilau_common.data.fields import JSON_FIELD
from vilau_common.data.shards import ShardWriter, dataset_info, read_shards
from vilau_common.data.text_tokenizer import check_sizes, train_text_tokenizer
from vilau_common.data.worlds.base import World, WorldConfig
from vilau_common.data.worlds.registry import WORLD_CONFIGS, build_world
from vilau_common.errors import UserError
from vilau_common.training.progress import TrainingProgress

# Part of what makes two preparations equal: raise it when the same settings give other samples than before.
PREPARATION = 4

TEXT_TOKENIZER = "tokenizer"


@dataclass(kw_only=True)
class PrepareConfig:
    """directory: where the splits go. hard_negatives: stored with each sample, for the contrastive losses.

    vocabulary_size: of the text tokenizer that is trained on the training split's texts, an upper bound; superwords:
    so many of its tokens span words.
    """

    directory: str
    world: WorldConfig
    samples_per_shard: int = 2_000
    hard_negatives: int = 8
    vocabulary_size: int = 512
    superwords: int = 0


SCHEMA_GROUPS = {"world": WORLD_CONFIGS}

Progress = Callable[[str, int], None]
"""Called with the split's name and the number of its samples written so far, a few times a second at least."""

_SAMPLES_BETWEEN_CALLS = 100


def prepare_world(
    world: World,
    config: WorldConfig,
    directory: Path,
    *,
    samples_per_shard: int,
    progress: Progress,
    hard_negatives: int = 0,
) -> dict[str, Path]:
    """Write every split of `world`, made from `config`, to `directory`/<split>; return the splits' directories.

    hard_negatives: so many captions that are almost, but not, true of it are stored with each sample.
    A split that stands there already, prepared with the same settings, is left alone.
    """
    # By way of JSON, so that it compares equal to what is read back.
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    written = {}
    for split, samples in world.splits().items():
        target = written[split] = directory / split
        info: dict[str, Any] = {
            "world": world.name,
            "split": split,
            "settings": settings,
            "preparation": PREPARATION,
        }
        if hard_negatives:
            info["hard_negatives"] = hard_negatives
        if is_prepared(target, info):
            continue
        with ShardWriter(target, info, samples_per_shard=samples_per_shard) as writer:
            for sample in samples():
                record = sample.to_json()
                if hard_negatives:
                    rng = random.Random(sample.key)
                    record["negatives"] = world.hard_negatives(
                        sample.scene, sample.captions[0], hard_negatives, rng
                    )
                data = json.dumps(record, ensure_ascii=False).encode()
                writer.write(sample.key, {"png": encode_png(sample.image), JSON_FIELD: data})
                if writer.samples % _SAMPLES_BETWEEN_CALLS == 0:
                    progress(split, writer.samples)
            if writer.samples % _SAMPLES_BETWEEN_CALLS:
                progress(split, writer.samples)
    return written


def prepare(config: PrepareConfig) -> None:
    """`vilau prepare`: write a built-in world's splits and a text tokenizer trained on its training split."""
    check_sizes(config.vocabulary_size, config.superwords)
    world, directory = build_world(config.world), Path(config.directory)
    with ExitStack() as stack:
        bars: dict[str, TrainingProgress] = {}

        def show(split: str, written: int) -> None:
            if split not in bars:
                bar = TrainingProgress(f"prepare {split}", world.size_of(split), "images", visible=True)
                bars[split] = stack.enter_context(bar)
            bars[split].advance(written, _SAMPLES_BETWEEN_CALLS, None)

        splits = prepare_world(
            world,
            config.world,
            directory,
            samples_per_shard=config.samples_per_shard,
            progress=show,
            hard_negatives=config.hard_negatives,
        )
    target = directory / TEXT_TOKENIZER
    made_from = {
        "data": dataset_info(splits["train"]).fingerprint,
        "vocabulary_size": config.vocabulary_size,
        "superwords": config.superwords,
    }
    note = target / "made_from.json"
    if not note.is_file() or json.loads(note.read_text()) != made_from:
        with atomic.new_directory(target) as unfinished:
            train_text_tokenizer(
                list(_texts(splits["train"])), unfinished, config.vocabulary_size, config.superwords
            )
            (unfinished / note.name).write_text(json.dumps(made_from))


def _texts(split: Path) -> Iterator[str]:
    """Every text of a prepared split."""
    for _, fields in read_shards(split):
        record = json.loads(fields[JSON_FIELD])
        yield from record["captions"]
        yield from record["texts"]
        for question in record["questions"]:
            yield question["question"]
            yield question["answer"]


def is_prepared(directory: Path, info: Mapping[str, Any]) -> bool:
    """Whether `directory` holds a whole data set that was written with this `info`."""
    try:
        return dataset_info(directory).info == dict(info)
    except UserError:
        return False


def encode_png(image: np.ndarray) -> bytes:
    """The PNG file of a picture, uint8 `[H, W, 3]`."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
