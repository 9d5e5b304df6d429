"""Writing a source's pictures to data sets, one a split, in a single pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import CAPTIONS, JSON_FIELD, image_field
from vilau_common.data.shards import ShardWriter, is_prepared
from vilau_common.data.sources.base import TRAIN, CaptionedPicture, PictureSource, Unusable
from vilau_common.errors import UserError

# Part of what makes two preparations equal: raise it when the same settings give other samples than before.
PREPARATION = 1

_UNUSABLE_TOLD = 3


def prepare_pictures(
    source: PictureSource, directory: Path, *, samples_per_shard: int, progress: Callable[[int], None]
) -> dict[str, Path]:
    """Write every split of `source` to `directory`/<split>; return the splits' directories.

    Picture files go into the shards as they are. Outside the training split each is decoded once, as an evaluation
    needs a whole set; the training's loader finds the damaged ones of the training split itself. `progress` gets the
    units read so far. Splits that stand there already, of the same pictures, are left alone. Raises UserError where
    a split gets no picture, or too many pictures cannot be used.
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
        for position, picture in source.pictures():
            seen += 1
            usable = picture if isinstance(picture, Unusable) else _checked(picture)
            if isinstance(usable, Unusable):
                unusable.append(usable)
            else:
                _write(writers[usable.split], usable)
            progress(position)
        _judge(source, unusable, seen)
        for split, writer in writers.items():
            if not writer.samples:
                raise UserError(
                    f"none of the {seen:,} pictures of {source.name} falls to the {split} split; set source.test_share "
                    "nearer to a half, or give more pictures"
                )
    if unusable:
        print(f"prepare: {len(unusable):,} of {seen:,} pictures are left out: {_told(unusable)}")
    return targets


def split_info(source: PictureSource, split: str) -> dict[str, Any]:
    """`DatasetInfo.info` of a split."""
    # By way of JSON, so that it compares equal to what is read back.
    return json.loads(
        json.dumps(
            {"source": source.name, "split": split, "settings": source.identity(), "preparation": PREPARATION}
        )
    )


def _checked(picture: CaptionedPicture) -> CaptionedPicture | Unusable:
    if picture.split != TRAIN:
        try:
            image_field({picture.ending: picture.image})
        except BadSample as error:
            return Unusable(picture.key, str(error))
    return picture


def _write(writer: ShardWriter, picture: CaptionedPicture) -> None:
    record = {CAPTIONS: picture.captions, "questions": [], "scene": None, "texts": [], "key": picture.key}
    content = json.dumps({**record, **picture.more}, ensure_ascii=False).encode()
    # A source's own keys may hold anything, and repeat.
    writer.write(f"{writer.samples:09d}", {picture.ending: picture.image, JSON_FIELD: content})


def _judge(source: PictureSource, unusable: list[Unusable], seen: int) -> None:
    if len(unusable) > source.max_bad_share * seen:
        raise UserError(
            f"{len(unusable):,} of {seen:,} pictures of {source.name} cannot be used, and source.max_bad_share allows "
            f"{source.max_bad_share:.1%}: {_told(unusable)}"
        )


def _told(unusable: list[Unusable]) -> str:
    first = "; ".join(f"{one.key}: {one.reason}" for one in unusable[:_UNUSABLE_TOLD])
    return first + ("; …" if len(unusable) > _UNUSABLE_TOLD else "")
