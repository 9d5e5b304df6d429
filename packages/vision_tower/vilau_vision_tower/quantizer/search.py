"""Nearest codes by Euclidean distance, a block of vectors at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Distances in memory at once, 128 MiB of float32; K = 65,536 over 65,536 vectors would need 16 GiB. On a CPU so few
# that they stay in its caches: a third less time.
BLOCK_DISTANCES = 2**25
CPU_BLOCK_DISTANCES = 2**22


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Inside the block products on `device` are true float32 ones, whatever autocast and the precision of products say.

    bfloat16 and TF32 (10 bits) confuse close codes, and evaluation, which has neither, would choose others than
    training. On a CPU the precision stays: there it chooses between libraries, see `TrainingConfig.matmul_precision`.
    """
    precision = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if device.type == "cuda":
            torch.set_float32_matmul_precision(precision)


@torch.no_grad()
def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """float32 [N, C], float32 [K, C] -> int64 [N]; of codes equally near, one of them."""
    if torch.compiler.is_compiling():
        return nearest_code_in_graph(vectors, codebook)
    return _nearest_code(vectors, codebook)


def _nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    limit = CPU_BLOCK_DISTANCES if vectors.device.type == "cpu" else BLOCK_DISTANCES
    rows = min(max(limit // len(codebook), 1), max(len(vectors), 1))
    codes = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    distances = vectors.new_empty(rows, len(codebook))
    with full_float32(vectors.device):
        # |v - e|^2 less |v|^2, which is the same for all codes.
        squares = codebook.square().sum(dim=-1)
        for begin in range(0, len(vectors), rows):
            block = vectors[begin : begin + rows]
            out = torch.addmm(squares, block, codebook.T, alpha=-2, out=distances[: len(block)])
            torch.argmin(out, dim=-1, out=codes[begin : begin + rows])
    return codes


# torch.compile cannot look inside (precision is a setting of the process); as one operation it takes it as it is.
nearest_code_in_graph = torch.library.custom_op("vilau::nearest_code", _nearest_code, mutates_args=())


@nearest_code_in_graph.register_fake
def _(vectors: Tensor, codebook: Tensor) -> Tensor:
    return torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
