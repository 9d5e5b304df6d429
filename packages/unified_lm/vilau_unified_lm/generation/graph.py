"""A function of tensors as one captured CUDA graph: replayed, it costs one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Libraries allocate their workspaces in the first calls, which a capture must not see.
WARM_UPS = 3


class Graph:
    """`function(*inputs)`, captured once.

    The function works on tensors of fixed shapes and fixed memory, without looking at a value from the host. It may
    write into memory of its own, but must come to the same when it is called again: it is called several times here.
    Its result is overwritten by the next call.
    """

    def __init__(self, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        self.inputs = [value.clone() for value in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for memory, value in zip(self.inputs, inputs, strict=True):
            memory.copy_(value)
        self.graph.replay()
        return self.output
