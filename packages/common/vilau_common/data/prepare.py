"""Turning a built-in world into data sets that trainings and evaluations read."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vilau_common.data.fields import JSON_FIELD
from vilau_common.data.shards import ShardWriter, dataset_info
from vilau_common.data.worlds.base import World, WorldConfig
from vilau_common.errors import UserError

# Part of what makes two preparations equal: raise it when the same settings give other samples than before.
PREPARATION = 1

Progress = Callable[[str, int], None]
"""Called with the split's name and the number of its samples written so far, a few times a second at least."""

_SAMPLES_BETWEEN_CALLS = 100


def prepare_world(
    world: World, config: WorldConfig, directory: Path, *, samples_per_shard: int, progress: Progress
) -> dict[str, Path]:
    """Write every split of `world`, made from `config`, to `directory`/<split>; return the splits' directories.

    A split that stands there already, prepared with the same settings, is left alone.
    """
    # By way of JSON, so that it compares equal to what is read back.
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    written = {}
    for split, samples in world.splits().items():
        target = written[split] = directory / split
        info = {"world": world.name, "split": split, "settings": settings, "preparation": PREPARATION}
        if is_prepared(target, info):
            continue
        with ShardWriter(target, info, samples_per_shard=samples_per_shard) as writer:
            for sample in samples():
                record = json.dumps(sample.to_json(), ensure_ascii=False).encode()
                writer.write(sample.key, {"png": encode_png(sample.image), JSON_FIELD: record})
                if writer.samples % _SAMPLES_BETWEEN_CALLS == 0:
                    progress(split, writer.samples)
            progress(split, writer.samples)
    return written


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
