"""The test splits of a prepared data set, and what their numbers are called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vilau_common.data.split import Split, load_split

TEST, HELD_OUT = "test", "test_held_out"


def test_splits(data: Path) -> Iterator[tuple[str, Split]]:
    """(prefix of its keys in results.json, split), one after the other; the first one's prefix is empty.

    Raises UserError where the data set has no test split, or a sample of one is damaged.
    """
    yield "", load_split(data / TEST)
    if (data / HELD_OUT).is_dir():  # not every world holds combinations out
        yield "held_out/", load_split(data / HELD_OUT)
