"""Turning a source, a built-in world or samples of one's own, into data sets that trainings and evaluations read."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from vilau_common import atomic
from vilau_common.data.conversation import without_placeholders
from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import (
    CAPTIONS,
    CONVERSATION,
    INSTRUCTION,
    INTERLEAVED,
    JSON_FIELD,
    captions_field,
    json_field,
)
from vilau_common.data.prepare_documents import prepare_documents
from vilau_common.data.shards import ShardWriter, dataset_info, is_prepared, read_shards
from vilau_common.data.sources.base import TRAIN, SamplesConfig, SourceConfig
from vilau_common.data.sources.linked import link_tars
from vilau_common.data.sources.registry import SOURCE_CONFIGS, build_source
from vilau_common.data.sources.webdataset import WebDatasetSource
from vilau_common.data.sources.write import prepare_samples, split_info
from vilau_common.data.text_tokenizer import check_sizes, train_text_tokenizer
from vilau_common.data.worlds.base import World, WorldConfig
from vilau_common.data.worlds.registry import build_world
from vilau_common.pictures import encode_png
from vilau_common.training.progress import TrainingProgress

# Part of what makes two preparations equal: raise it when the same settings give other samples than before.
PREPARATION = 7

TEXT_TOKENIZER = "tokenizer"


@dataclass(kw_only=True)
class PrepareConfig:
    """directory: where the splits go. source: a built-in world, or samples of people's own.

    hard_negatives: stored with each sample of a world, for the contrastive losses; other sources cannot make any.
    vocabulary_size: of the text tokenizer that is trained on the training split's texts, an upper bound; null: none is
    trained, for models that bring their own. superwords: so many of its tokens span words.
    """

    directory: str
    source: SourceConfig
    samples_per_shard: int = 2_000
    hard_negatives: int = 8
    vocabulary_size: int | None = 512
    superwords: int = 0


SCHEMA_GROUPS = {"source": SOURCE_CONFIGS}

Progress = Callable[[str, int], None]
"""Called with the split's name and the number of its samples written so far, a few times a second at least."""

_SAMPLES_BETWEEN_CALLS = 100

_REDRAWS = 100  # of the bar over a source's samples

# The text tokenizer sees so many: more change nothing in it, and would not fit into memory.
_TEXTS_FOR_TOKENIZER = 2_000_000


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
    """`vilau prepare`: write a source's splits and a text tokenizer trained on its training split."""
    if config.vocabulary_size is not None:
        check_sizes(config.vocabulary_size, config.superwords)
    if isinstance(config.source, WorldConfig):
        trains = _write_world(config, config.source)
    else:
        assert isinstance(config.source, SamplesConfig)
        trains = [_write_samples(config, config.source)]
    if config.vocabulary_size is not None:
        _train_tokenizer(config, config.vocabulary_size, trains)


def _write_world(config: PrepareConfig, source: WorldConfig) -> list[Path]:
    """Write a world's splits and documents; the directories of training data, its pictures first."""
    world = build_world(source)
    documents = {name: count for name, (count, _) in world.documents().items()}
    with ExitStack() as stack:
        bars: dict[str, TrainingProgress] = {}

        def show(split: str, written: int) -> None:
            if split not in bars:
                size, unit = (
                    (documents[split], "documents")
                    if split in documents
                    else (world.size_of(split), "images")
                )
                bar = TrainingProgress(f"prepare {split}", size, unit, visible=True)
                bars[split] = stack.enter_context(bar)
            bars[split].advance(written, _SAMPLES_BETWEEN_CALLS, None)

        splits = prepare_world(
            world,
            source,
            Path(config.directory),
            samples_per_shard=config.samples_per_shard,
            progress=show,
            hard_negatives=config.hard_negatives,
        )
        more = prepare_documents(
            world,
            source,
            Path(config.directory),
            samples_per_shard=config.samples_per_shard,
            progress=show,
        )
    return [splits[TRAIN], *(path for path in more.values() if path.name == TRAIN)]


def _write_samples(config: PrepareConfig, settings: SamplesConfig) -> Path:
    """Write the splits of a source that is no world; the training split's directory."""
    source, directory = build_source(settings), Path(config.directory)
    with TrainingProgress("prepare", source.size(), source.unit, visible=True) as bar:
        size, shown = source.size(), 0
        step = max(1, size // _REDRAWS)

        def show(position: int) -> None:
            nonlocal shown
            if position - shown >= step:
                bar.advance(position, position - shown, None)
                shown = position

        splits = prepare_samples(source, directory, samples_per_shard=config.samples_per_shard, progress=show)
    if isinstance(source, WebDatasetSource) and not source.config.rewrite:
        splits[TRAIN] = directory / TRAIN
        link_tars(source.tars, splits[TRAIN], split_info(source, TRAIN), source.config.caption_key)
    return splits[TRAIN]


def _train_tokenizer(config: PrepareConfig, vocabulary_size: int, trains: list[Path]) -> None:
    """Train it on the training data's texts, unless it stands there, made from the same."""
    target = Path(config.directory) / TEXT_TOKENIZER
    made_from = {
        "data": [dataset_info(train).fingerprint for train in trains],
        "vocabulary_size": vocabulary_size,
        "superwords": config.superwords,
    }
    note = target / "made_from.json"
    if not note.is_file() or json.loads(note.read_text()) != made_from:
        with atomic.new_directory(target) as unfinished:
            texts = list(islice(_by_turns(map(_texts, trains)), _TEXTS_FOR_TOKENIZER))
            train_text_tokenizer(texts, unfinished, vocabulary_size, config.superwords)
            (unfinished / note.name).write_text(json.dumps(made_from))


def _by_turns(streams: Iterable[Iterator[str]]) -> Iterator[str]:
    """A text of each in turn, so that the first ones are not of one data set alone."""
    for texts in zip_longest(*streams):
        yield from (text for text in texts if text is not None)


def _texts(split: Path) -> Iterator[str]:
    """Every text of a prepared split."""
    caption_key = dataset_info(split).caption_key
    for _, fields in read_shards(split):
        try:
            record = json_field(fields)
            if caption_key != CAPTIONS or CAPTIONS in record:
                yield from captions_field(fields, caption_key)
        except BadSample:
            continue  # other people's tars as they are: the training's loader counts them
        yield from record.get("texts", [])
        for question in record.get("questions", []):
            yield question["question"]
            yield question["answer"]
        said = [turn["text"] for turn in record.get(CONVERSATION, [])]
        said += [record[name] for name in (INTERLEAVED, INSTRUCTION) if name in record]
        yield from map(without_placeholders, said)
