"""Small data sets, and the way to `loader_toy` beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # pytest's importlib mode does not add it

import loader_toy


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 good samples with keys 0000 … 0255 in 4 shards."""
    directory = tmp_path_factory.mktemp("data") / "pictures"
    loader_toy.write_pictures(directory, [loader_toy.good_sample(number) for number in range(256)])
    return directory
