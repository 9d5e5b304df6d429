"""A data set of other people's tars as they are: links, an index and a `dataset.json`; no picture is copied.

The tars stay where they are, on storage that may be read-only, and have to stay there.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vilau_common import atomic
from vilau_common.data.energon_index import write_index
from vilau_common.data.shards import CAPTION_KEY, DATASET_FILE, DatasetInfo, is_prepared

_OFFSET_BYTES = 8  # of an entry of Megatron-Energon's index


def link_tars(tars: list[Path], directory: Path, info: dict[str, Any], caption_key: str) -> None:
    """Make `directory` a data set of the samples of `tars`. A standing one with this `info` is left alone."""
    info = {**info, CAPTION_KEY: caption_key}
    if is_prepared(directory, info):
        return
    with atomic.new_directory(directory) as unfinished:
        names = [f"{number:05d}.tar" for number in range(len(tars))]
        for name, tar in zip(names, tars, strict=True):
            (unfinished / name).symlink_to(tar.resolve())
        write_index(unfinished, names)
        digest, shards = hashlib.sha256(), {}
        for name, tar in zip(names, tars, strict=True):
            offsets = (unfinished / f"{name}.idx").read_bytes()
            shards[name] = len(offsets) // _OFFSET_BYTES - 1  # the last one is the end
            digest.update(f"{tar.name}:{tar.stat().st_size}:{tar.stat().st_mtime_ns}:".encode() + offsets)
        description = DatasetInfo(sum(shards.values()), digest.hexdigest(), shards, [], info)
        (unfinished / DATASET_FILE).write_text(json.dumps(asdict(description), indent=2) + "\n")
