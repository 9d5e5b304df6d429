"""The index that Megatron-Energon reads a directory of shards by."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

from megatron.energon.flavors.webdataset.config import MAIN_FOLDER_NAME, SPLIT_YAML_FILENAME
from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

# Our splits are directories; within one, every shard belongs to the part that energon reads by default.
SPLIT_PART = "train"

_DATASET_YAML = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"


def write_index(directory: Path, shards: Sequence[str]) -> None:
    """Write `<shard>.idx` and `.nv-meta/` for the tar files `shards`; ask and print nothing."""
    with contextlib.redirect_stdout(io.StringIO()):  # energon prints its progress
        WebdatasetPreparator.prepare_dataset(
            directory,
            list(shards),
            split_parts_patterns=[(SPLIT_PART, ".*")],
            split_config=SPLIT_YAML_FILENAME,
            workers=1,
        )
    (directory / MAIN_FOLDER_NAME / "dataset.yaml").write_text(_DATASET_YAML)
