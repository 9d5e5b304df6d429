"""Where codebooks begin: random residuals of the first batch, and a few steps of k-means from there.

A code drawn from a vector leaves nothing of it over. Were the next depth to start from those vectors too, it would
start from zeros: each depth has a share of the batch to itself, which no former depth has seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vilau_common import distributed
from vilau_vision_tower.quantizer.joint import JointBatch, cluster
from vilau_vision_tower.quantizer.search import nearest_code


@torch.no_grad()
def first_codebooks(vectors: Tensor, size: int, depth: int, shared: bool, kmeans_iterations: int) -> Tensor:
    """This rank's vectors float [N, C] -> codebooks float [S, size, C], the same on all ranks; S is 1 or depth.

    A shared codebook must cover coarse and fine residuals: each depth begins its part of the codes.
    """
    if len(set(distributed.gather(len(vectors)))) > 1:
        raise ValueError("a joint batch needs as many vectors of every rank")
    codebooks = vectors.new_zeros(1 if shared else depth, size, vectors.shape[-1])
    order = JointBatch(vectors).random_order()
    # Of a batch smaller than the depth, vectors are used again.
    length = max(len(order) // depth, 1)
    residual = vectors
    for level in range(depth):
        places = torch.arange(level * length, (level + 1) * length, device=order.device)
        share = order[places % len(order)]
        begin, end = (-(-part * size // depth) for part in (level, level + 1)) if shared else (0, size)
        book = codebooks[0 if shared else level, :end]
        if begin < end:  # a shared codebook may have fewer codes than there are depths
            book[begin:] = fit(JointBatch(residual), share, end - begin, kmeans_iterations)
        residual = residual - book[nearest_code(residual, book)]
    return codebooks


def fit(batch: JointBatch, share: Tensor, count: int, kmeans_iterations: int) -> Tensor:
    """`count` codes float [count, C] for the vectors of the joint batch at the indices `share`, int64 [M].

    Drawn in the order of `share`, again from its beginning where M < count; then Lloyd's algorithm over all ranks.
    A code without vectors stays where it is.
    """
    codes = batch.rows(share[torch.arange(count, device=share.device) % len(share)])
    own = batch.own(share)
    for _ in range(kmeans_iterations):
        counts, sums = (distributed.sum_(part) for part in cluster(own, nearest_code(own, codes), count))
        used = counts.unsqueeze(-1)
        codes = torch.where(used > 0, sums / used.clamp(min=1), codes)
    return codes
