"""How far the set of reconstructions lies from the set of pictures: rFID (Heusel et al. 2017) and KID (Bińkowski et
al. 2018), from features of one network, by torch-fidelity's formulas.

rFID is the Fréchet distance of two Gaussians, from running sums. KID, the unbiased squared MMD under a cubic kernel,
compares pictures one by one, so it takes a random part of them (reservoir sampling) that fits in memory. `kid` is
torch-fidelity's number, also torchmetrics', as papers print it. It takes the two sets for independent. But a picture
and its own reconstruction are not, and where a subset holds both the estimate comes out too low, below zero where
reconstructions are good: `kid_paired` leaves such pairs out (the U-statistic).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_kid import (
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    kernel_poly,
    kid_features_to_metric,
    mmd2,
)

from vilau_vision_tower.evaluation.features import FeatureNetwork
from vilau_vision_tower.evaluation.metric import EvaluatedBatch, Metric, NotComputed

KID_SUBSETS = 100
LEAST_PICTURES = 2  # one has neither a covariance nor another to be compared with


class FeatureDistances(Metric):
    """rfid, kid, kid_std and kid_paired, with the network's suffix; kid_subset_size: pictures in a subset of KID."""

    def __init__(self, network: FeatureNetwork, kid_pictures: int, kid_subset_size: int, seed: int) -> None:
        """kid_pictures: at most so many are kept for KID. kid_subset_size: at most."""
        self.network = network
        self.subset_size = kid_subset_size
        self.seed = seed
        self.moments = Moments(), Moments()
        self.kept = Reservoir(kid_pictures, seed)

    def update(self, batch: EvaluatedBatch) -> None:
        pair = self.network(to_bytes(batch.images)), self.network(to_bytes(batch.reconstructions))
        for moments, features in zip(self.moments, pair, strict=True):
            moments.add(features)
        self.kept.add(torch.stack(pair, dim=1))

    def result(self) -> dict[str, float]:
        count = self.moments[0].count
        if count < LEAST_PICTURES:
            raise NotComputed(f"rFID and KID need {LEAST_PICTURES} pictures at least, but there are {count}")
        rfid = frechet_distance(*self.moments)
        pairs = self.kept.items().double()
        subset_size = min(self.subset_size, len(pairs))
        kid = kid_features_to_metric(
            *pairs.unbind(dim=1),
            kid_subsets=KID_SUBSETS,
            kid_subset_size=subset_size,
            rng_seed=self.seed,
            verbose=False,
        )
        suffix = self.network.suffix
        return {
            f"rfid{suffix}": rfid,
            f"kid{suffix}": kid[KEY_METRIC_KID_MEAN],
            f"kid_std{suffix}": kid[KEY_METRIC_KID_STD],
            f"kid_paired{suffix}": float(paired_estimates(pairs, subset_size, self.seed).mean()),
            "kid_subset_size": subset_size,
        }


def paired_estimates(pairs: Tensor, subset_size: int, seed: int) -> npt.NDArray[np.float64]:
    """The squared MMD of each of KID_SUBSETS random subsets, no picture compared with its own reconstruction.

    pairs: float [N, 2, C], features of a picture and of its reconstruction; subset_size: N at most.
    """
    rng = np.random.default_rng(seed)
    features = pairs.numpy()
    estimates = []
    for _ in range(KID_SUBSETS):
        real, again = features[rng.permutation(len(features))[:subset_size]].swapaxes(0, 1)
        kernels = (kernel_poly(x, y) for x, y in ((real, real), (real, again), (again, again)))
        estimates.append(mmd2(*kernels, mmd_est="u-statistic"))
    return np.array(estimates)


class Moments:
    """Running mean and covariance of vectors, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = torch.zeros(())
        self.products = torch.zeros(())

    def add(self, features: Tensor) -> None:
        """features: float [B, C]."""
        rows = features.double()
        self.sum = self.sum.to(rows) + rows.sum(dim=0)
        self.products = self.products.to(rows) + rows.T @ rows
        self.count += len(rows)

    def statistics(self) -> Mapping[str, npt.NDArray[np.float64]]:
        """mu [C], and sigma [C, C] with N - 1 in the denominator, as numpy.cov has it."""
        mean = self.sum / self.count
        covariance = (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return {"mu": mean.cpu().numpy(), "sigma": covariance.cpu().numpy()}


def frechet_distance(one: Moments, other: Moments) -> float:
    """Of the Gaussians with these moments, as FID has it; each of LEAST_PICTURES rows at least."""
    statistics = (moments.statistics() for moments in (one, other))
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


class Reservoir:
    """A random sample of at most `size` of all rows seen, each equally likely to be in it (Vitter's algorithm R)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seen = size, 0
        self.rng = np.random.default_rng(seed)
        self.rows: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """rows: [B, ...]; kept on the CPU."""
        for row in rows.cpu():
            self.seen += 1
            if len(self.rows) < self.size:
                self.rows.append(row.clone())
            elif (place := int(self.rng.integers(self.seen))) < self.size:
                self.rows[place] = row.clone()

    def items(self) -> Tensor:
        """What was kept, [at most size, ...]."""
        return torch.stack(self.rows)


def to_bytes(images: Tensor) -> Tensor:
    """float [B, 3, H, W] in [-1, 1] -> uint8 of the same shape and device, as a picture file holds it."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
