"""CUDA graphs on a CPU: operations are recorded once and replayed on the very same memory.

As with a real graph, nothing of the Python code around them runs again; a value that was read from the host, or a
tensor that was made anew between two replays, would stay what it was.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """In the place of a torch.cuda.CUDAGraph."""

    replays = 0  # of all tapes

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        type(self).replays += 1
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for memory, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(memory, Tensor) and memory.data_ptr() != value.data_ptr():
                    memory.copy_(value)


class Stream:
    def wait_stream(self, other: Stream) -> None:
        """There is one only."""


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.cuda capture tapes."""
    monkeypatch.setattr(Tape, "replays", 0)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", lambda tape: tape)
