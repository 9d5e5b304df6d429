"""What the training tests share: one thread, quiet restored afterwards, and processes that can be killed."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# The toys are modules beside the tests, and the children of the fork server import them by name.
sys.path.insert(0, str(Path(__file__).parent))

from toy_compare import EndState
from toy_training import run_toy

from vilau_common.run import isolated_random


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The processes started here and the test itself must add numbers up in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Training seeds the global generators: leave them as they were."""
    with isolated_random(0):
        yield


@pytest.fixture(scope="session")
def processes() -> multiprocessing.context.ForkServerContext:
    """Starts processes from a server that has imported torch already: real ones, but in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    # What torch's optimisers and Accelerate import at their first use, too.
    context.set_forkserver_preload(["toy_children", "torch._dynamo", "torch.distributed.tensor"])
    return context


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> EndState:
    """How the toy run ends when nothing happens to it."""
    path = tmp_path_factory.mktemp("run") / "uninterrupted"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with isolated_random(0):
        run_toy(path)
    torch.set_num_threads(threads)
    return EndState.of(path)
