"""The index that Megatron-Energon reads a directory of shards by."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

from megatron.energon.flavors.webdataset.config import MAIN_FOLDER_NAME, SPLIT_YAML_FILENAME
from megatron.energon.flavors.webdataset.indexing import DuplicateSampleKeyError
from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

from vilau_common.errors import UserError

# Our splits are directories; within one, every shard belongs to the part that energon reads by default.
SPLIT_PART = "train"

_DATASET_YAML = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"


def write_index(directory: Path, shards: Sequence[str]) -> None:
    """Write `<shard>.idx` and `.nv-meta/` for the tar files `shards`; ask and print nothing.

    Raises UserError where a key is in them twice, since the index finds samples by key.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # energon prints its progress
            WebdatasetPreparator.prepare_dataset(
                directory,
                list(shards),
                split_parts_patterns=[(SPLIT_PART, ".*")],
                split_config=SPLIT_YAML_FILENAME,
                workers=1,
            )
    except SystemExit as end:  # energon's answer to keys that repeat, with what it found as the context
        if not isinstance(end.__context__, DuplicateSampleKeyError):
            raise
        raise UserError(
            f"two samples of the tars have the key {end.__context__.sample_key!r}, and tars are read by keys: "
            "source.rewrite=true writes them anew, with keys of their own"
        ) from None
    (directory / MAIN_FOLDER_NAME / "dataset.yaml").write_text(_DATASET_YAML)
