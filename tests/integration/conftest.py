"""The tiny trained line that the integration tests share."""

from __future__ import annotations

import pytest
from tiny_line import Line

from vilau_unified_lm.cli import main


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Data, CLIP, tower and codes of a tiny world, all made by the command line's own functions."""
    line = Line(tmp_path_factory.mktemp("line"))
    counts = "source={image_size: 24, train_count: 200, test_count: 12, held_out_count: 6}"
    assert main(["prepare", f"directory={line.root / 'data'}", counts, "samples_per_shard=100"]) == 0
    for verb, name in (("train-clip", "clip"), ("train-tower", "tower"), ("tokenize", "codes")):
        assert main(line.arguments(verb, line.root / name, steps=3)) == 0
    return line
