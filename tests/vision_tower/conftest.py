"""Random models small enough to run in milliseconds, and a prepared data set of scenes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, SiglipModel

sys.path.append(str(Path(__file__).parent))  # pytest's importlib mode does not add it

import tiny_tower

from vilau_common.data.prepare import PrepareConfig, prepare
from vilau_common.data.text_tokenizer import train_text_tokenizer
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.run import isolated_random
from vilau_vision_tower.tower import VisionTower

TEXTS = ["a large red circle at the top left", "a small blue square and a green cross", "nothing else"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums must be added up in the same order everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with isolated_random(0):
        yield


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return train_text_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), 300)


@pytest.fixture
def clip(tokenizer: PreTrainedTokenizerFast) -> SiglipModel:
    return tiny_tower.tiny_clip(tokenizer)


@pytest.fixture
def tower(clip: SiglipModel) -> VisionTower:
    return tiny_tower.tiny_tower(clip)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set: train (64 pictures in 2 shards), test (12) and tokenizer."""
    directory = tmp_path_factory.mktemp("scenes")
    world = ScenesConfig(
        image_size=tiny_tower.IMAGE_SIZE, train_count=64, test_count=12, held_out_count=0, held_out_pairs=[]
    )
    prepare(PrepareConfig(directory=str(directory), source=world, samples_per_shard=40, hard_negatives=4))
    return directory
