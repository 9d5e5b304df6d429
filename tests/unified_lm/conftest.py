"""One thread, global generators restored, and the tiny models of `tiny_lm` beside this file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from vilau_common.run import isolated_random
from vilau_unified_lm.document import DocumentBuilder
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.vocabulary import Vocabulary

sys.path.append(str(Path(__file__).parent))  # pytest's importlib mode does not add it

import tiny_lm
import tiny_run


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in the same order every time, and no fight over the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test begins with the same global generators and leaves them as they were."""
    with isolated_random(0):
        yield


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the special tokens."""
    return tiny_lm.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer, tiny_lm.K, tiny_lm.D)


@pytest.fixture(scope="session")
def builder(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> DocumentBuilder:
    return DocumentBuilder(tokenizer, vocabulary)


@pytest.fixture(params=[False, True], ids=["plain", "grid_positions"])
def model(request: pytest.FixtureRequest, vocabulary: Vocabulary) -> UnifiedLM:
    """A fresh tiny model in evaluation mode, with and without learned grid positions."""
    return tiny_lm.make_model(vocabulary, grid_positions=request.param)


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tower/, tokenizer/ and codes/ for `vilau train-lm`."""
    return tiny_run.make_ready(tmp_path_factory.mktemp("ready"))
