"""Writing a source's samples to data sets, one a split, in a single pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import JSON_FIELD, images_field, picture_fields
from vilau_common.data.shards import ShardWriter, is_prepared
from vilau_common.data.sources.base import TRAIN, CaptionedPicture, DocumentSample, SampleSource, Unusable
from vilau_common.errors import UserError

# Part of what makes two preparations equal: raise it when the same settings give other samples than before.
PREPARATION = 1

_UNUSABLE_TOLD = 3


def prepare_samples(
    source: SampleSource, directory: Path, *, samples_per_shard: int, progress: Callable[[int], None]
) -> dict[str, Path]:
    """Write every split of `source` to `directory`/<split>; return the splits' directories.

    Picture files go into the shards as they are. Outside the training split each is decoded once, as an evaluation
    needs a whole set; the training's loader finds the damaged ones of the training split itself. `progress` gets the
    units read so far. Splits that stand there already, of the same samples, are left alone. Raises UserError where
    a split gets no sample, or too many samples cannot be used.
    """
    infos = {split: split_info(source, split) for split in source.splits}
    targets = {split: directory / split for split in source.splits}
    if all(is_prepared(targets[split], info) for split, info in infos.items()):
        return targets
    unusable: list[Unusable] = []
    seen = 0
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(ShardWriter(targets[split], info, samples_per_shard=samples_per_shard))
            for split, info in infos.items()
        }
        for position, sample in source.samples():
            seen += 1
            usable = sample if isinstance(sample, Unusable) else _checked(sample)
            if isinstance(usable, Unusable):
                unusable.append(usable)
            else:
                _write(writers[usable.split], usable)
            progress(position)
        _judge(source, unusable, seen)
        for split, writer in writers.items():
            if not writer.samples:
                raise UserError(
                    f"none of the {seen:,} {source.noun} of {source.name} falls to the {split} split; set "
                    f"source.test_share nearer to a half, or give more {source.noun}"
                )
    if unusable:
        print(f"prepare: {len(unusable):,} of {seen:,} {source.noun} are left out: {_told(unusable)}")
    for remark in source.remarks():
        print(f"prepare: {remark}")
    return targets


def split_info(source: SampleSource, split: str) -> dict[str, Any]:
    """`DatasetInfo.info` of a split."""
    # By way of JSON, so that it compares equal to what is read back.
    return json.loads(
        json.dumps(
            {"source": source.name, "split": split, "settings": source.identity(), "preparation": PREPARATION}
        )
    )


def _checked(sample: CaptionedPicture | DocumentSample) -> CaptionedPicture | DocumentSample | Unusable:
    if sample.split != TRAIN:
        try:
            images_field(picture_fields(sample.pictures), sample.record)
        except BadSample as error:
            return Unusable(sample.key, str(error))
    return sample


def _write(writer: ShardWriter, sample: CaptionedPicture | DocumentSample) -> None:
    content = json.dumps(sample.record, ensure_ascii=False).encode()
    # A source's own keys may hold anything, and repeat.
    writer.write(f"{writer.samples:09d}", {**picture_fields(sample.pictures), JSON_FIELD: content})


def _judge(source: SampleSource, unusable: list[Unusable], seen: int) -> None:
    if len(unusable) > source.max_bad_share * seen:
        raise UserError(
            f"{len(unusable):,} of {seen:,} {source.noun} of {source.name} cannot be used, and source.max_bad_share "
            f"allows {source.max_bad_share:.1%}: {_told(unusable)}"
        )


def _told(unusable: list[Unusable]) -> str:
    first = "; ".join(f"{one.key}: {one.reason}" for one in unusable[:_UNUSABLE_TOLD])
    return first + ("; …" if len(unusable) > _UNUSABLE_TOLD else "")
