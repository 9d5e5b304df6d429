"""Writing a world's documents of several pictures to data sets, one a kind and split."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vilau_common.data.fields import JSON_FIELD, picture_fields
from vilau_common.data.shards import ShardWriter, is_prepared
from vilau_common.data.worlds.base import World, WorldConfig
from vilau_common.pictures import encode_png

# Part of what makes two preparations equal: raise it when the same settings give other documents than before.
PREPARATION = 1

_DOCUMENTS_BETWEEN_CALLS = 100


def prepare_documents(
    world: World,
    config: WorldConfig,
    directory: Path,
    *,
    samples_per_shard: int,
    progress: Callable[[str, int], None],
) -> dict[str, Path]:
    """Write `world.documents()` to `directory`/<kind>/<split>; return the directories by "<kind>/<split>".

    What stands there already, prepared with the same settings, is left alone. `progress` gets the name and the number
    of documents written so far.
    """
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    written = {}
    for name, (_, documents) in world.documents().items():
        target = written[name] = directory / name
        info: dict[str, Any] = {
            "world": world.name,
            "documents": name,
            "settings": settings,
            "preparation": PREPARATION,
        }
        if is_prepared(target, info):
            continue
        with ShardWriter(target, info, samples_per_shard=samples_per_shard) as writer:
            for document in documents():
                pictures = [("png", encode_png(image)) for image in document.images]
                data = json.dumps(document.record, ensure_ascii=False).encode()
                writer.write(document.key, {**picture_fields(pictures), JSON_FIELD: data})
                if writer.samples % _DOCUMENTS_BETWEEN_CALLS == 0:
                    progress(name, writer.samples)
            if writer.samples % _DOCUMENTS_BETWEEN_CALLS:
                progress(name, writer.samples)
    return written
