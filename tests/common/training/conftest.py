"""What the training tests share: one thread, quiet restored afterwards, and processes that can be killed."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# The children of the fork server import the toy task by name, so it must be importable.
sys.path.insert(0, str(Path(__file__).parent))


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
    from vilau_common.run import isolated_random

    with isolated_random(0):
        yield


@pytest.fixture(scope="session")
def processes() -> multiprocessing.context.ForkServerContext:
    """Starts processes from a server that has imported torch already: real ones, but in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    # What torch's optimisers and Accelerate import at their first use, too.
    context.set_forkserver_preload(["toy_training", "torch._dynamo", "torch.distributed.tensor"])
    return context
