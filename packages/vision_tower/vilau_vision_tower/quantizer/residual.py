"""Residual quantisation (Lee et al. 2022, arXiv 2203.01941, section 3.1), as VILA-U applies it (section 3.1).

A vector z is approximated by a sum of D code embeddings, each depth quantising what the former ones left over:

    r_0 = z,   k_d = argmin_k |r_{d-1} - e_d(k)|^2,   r_d = r_{d-1} - e_d(k_d),   z_q = sum_d e_d(k_d)

Gradients pass straight through: dz_q/dz = 1. How the codebooks follow the data is the subclasses' part (`codebooks`).
All of this is float32 whatever autocast does, the search for codes also where TF32 is allowed (`search.full_float32`).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vilau_common import distributed
from vilau_common.errors import UserError
from vilau_vision_tower.quantizer.base import (
    AnyQuantizerConfig,
    Quantizer,
    QuantizerOutput,
    check_code_dim,
    check_codebook_size,
)
from vilau_vision_tower.quantizer.joint import JointBatch, cluster
from vilau_vision_tower.quantizer.search import nearest_code
from vilau_vision_tower.quantizer.start import first_codebooks

log = logging.getLogger(__name__)

CODEBOOK_UPDATES = ("ema", "gradient")
FEW_VECTORS = 10  # of so few the average is mostly chance


@dataclass(kw_only=True)
class QuantizerConfig(AnyQuantizerConfig):
    """Residual quantiser.

    codebook_size: K, codes per codebook, 2 to 65,536. depth: D, codes per visual position, 1 to 16.
    shared_codebook: one codebook for all depths, or one each.
    code_dim: width of the code embeddings; None takes the encoder's width without a projection (as published).
    codebook_update: 'ema' (moving averages of the vectors assigned to a code) or 'gradient' (the codebook loss of
    VQ-VAE, weighted by loss.codebook).
    ema_decay: of the moving averages, under 'gradient' of the usage alone. restart_below: a code that gets less than
    this share of a code's mean usage (vectors of a step / K), by its moving count, restarts at a residual of the batch.
    A share, so that it means the same for any K, batch and number of GPUs; RQ-VAE's count of 1 was one of 0.03 of its
    mean on the paper's joint batch.
    kmeans_iterations: steps of Lloyd's algorithm on the first batch, from random vectors; 0 starts at those.
    """

    kind: str = "rq"
    codebook_size: int = 16384
    shared_codebook: bool = False
    code_dim: int | None = None
    codebook_update: str = "ema"
    ema_decay: float = 0.99
    restart_below: float = 0.03
    kmeans_iterations: int = 0

    def follows_features(self) -> bool:
        return self.codebook_update == "ema" or self.restart_below > 0

    def validate(self) -> None:
        super().validate()
        check_codebook_size(self.codebook_size, "codebook_size")
        check_code_dim(self.code_dim)
        if self.codebook_update not in CODEBOOK_UPDATES:
            raise UserError(
                f"quantizer.codebook_update is {self.codebook_update!r}; the choices are "
                f"{' and '.join(CODEBOOK_UPDATES)}"
            )
        if not 0 < self.ema_decay < 1:
            raise UserError(f"quantizer.ema_decay is {self.ema_decay}, but a decay lies between 0 and 1")
        if not 0 <= self.restart_below < 1:
            raise UserError(
                f"quantizer.restart_below is {self.restart_below}, but it is a share of a code's mean usage, at least "
                "0 and below 1: about half of the codes lie below the mean, and would restart at every step"
            )
        if self.kmeans_iterations < 0:
            raise UserError(
                f"quantizer.kmeans_iterations is {self.kmeans_iterations}; give a number of steps, or 0 for none"
            )


@dataclass
class Approximation:
    """What D codes make of vectors float [N, C]; carries no gradients."""

    codes: Tensor  # int64 [N, D]
    quantized: Tensor  # float [N, C], the sum of their embeddings
    mean_residual: Tensor  # float [N, C], r_1 to r_D averaged
    error: Tensor  # float [], mean of |r_d|^2 over vectors, channels and depths


class ResidualQuantizer(Quantizer):
    """The recursion above over codebooks that follow the data.

    State: `codebooks` float32 [S, K, code_width] with S = 1 (shared) or D; the buffers `counts` [S, K], moving averages
    of how many vectors of a step take each code, and `started`, whether the codebooks hold data yet.

    Initialisation: the codebooks begin at the first training batch's residuals (`start`), depth by depth (a random
    start leaves most codes far from every vector); projections take PyTorch's default.
    """

    config: QuantizerConfig
    codebooks: Tensor
    counts: Tensor
    started: Tensor

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__(config, width, config.code_dim)
        self.config = config
        books = 1 if config.shared_codebook else config.depth
        self.register_codebooks(torch.zeros(books, config.codebook_size, self.code_width))
        self.register_buffer("counts", torch.zeros(books, config.codebook_size))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        # Whether `started` has been seen to be true: looking at it would wait for a GPU at every step.
        self._known_to_have_started = False

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @abstractmethod
    def register_codebooks(self, codebooks: Tensor) -> None:
        """Make `codebooks` part of the module."""

    @abstractmethod
    def move_codebook(self, book: int, sums: Tensor, dead: Tensor, fresh: Tensor, count: float) -> None:
        """One step of codebook `book`, whose `counts` have moved already.

        sums: float [K, C], this rank's vectors summed by code. dead: bool [K], the codes that restart, and fresh: float
        [K, C], this rank's share of where they do (see `JointBatch.share`); count: with which usage they do.
        """

    @abstractmethod
    def codebook_loss(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """float [N, C], int64 [N, D] -> scalar, the loss of the codebooks' gradient."""

    @torch.no_grad()
    def set_codebooks(self, codebooks: Tensor, count: float = 1.0) -> None:
        """Go on from these codebooks, float [S, K, code_width], every code as if it had had `count` vectors a step."""
        self.codebooks.copy_(codebooks)
        self.counts.fill_(count)
        self.started.fill_(True)

    def book_of(self, depth: int) -> int:
        """Index of the codebook that depth `depth` reads."""
        return 0 if self.config.shared_codebook else depth

    def forward(self, z: Tensor) -> QuantizerOutput:
        """float [..., width] -> QuantizerOutput. In training mode the codebooks move after the codes are taken."""
        latent = self.project_in(z)
        vectors = latent.reshape(-1, self.code_width).float()
        flat = vectors.detach()
        # A batch that the codebooks have begun at moves them no further: what they took from it leaves nothing over,
        # and codes that restarted there would be zeros.
        begins = self.training and self._begin(flat)
        found = self._approximate(flat)
        codebook_loss = self.codebook_loss(flat, found.codes)
        restarts = flat.new_zeros(()) if self.training else None
        if self.training and not begins:
            restarts = self._follow(flat, found.codes)
        return QuantizerOutput(
            z_q=self.project_out(latent + (found.quantized.view_as(latent) - latent).detach()),
            codes=found.codes.view(*z.shape[:-1], self.depth),
            commitment=commitment(vectors, found),
            codebook=codebook_loss,
            restarts=restarts,
        )

    def embed(self, codes: Tensor) -> Tensor:
        books = torch.arange(len(self.codebooks), device=codes.device)  # one of each depth, or one for all
        return F.embedding(books * self.codebook_size + codes, self.codebooks.flatten(0, 1))

    def embed_depth(self, codes: Tensor, depth: int) -> Tensor:
        return F.embedding(codes, self.codebooks[self.book_of(depth)])

    @torch.no_grad()
    def _approximate(self, vectors: Tensor) -> Approximation:
        """The codes of vectors float [N, C], depth by depth."""
        residual, codes = vectors, []
        quantized, mean_residual = torch.zeros_like(vectors), torch.zeros_like(vectors)
        error = vectors.new_zeros(())
        for depth in range(self.depth):
            book = self.codebooks[self.book_of(depth)]
            codes.append(nearest_code(residual, book))
            embedding = F.embedding(codes[-1], book)
            quantized += embedding
            residual = residual - embedding
            mean_residual.add_(residual, alpha=1 / self.depth)
            error += residual.square().mean() / self.depth
        return Approximation(torch.stack(codes, dim=-1), quantized, mean_residual, error)

    def _begin(self, vectors: Tensor) -> bool:
        """Codebooks from the first batch, float [N, C], where none were loaded; returns whether they were needed."""
        if self._known_to_have_started:
            return False
        self._known_to_have_started = True
        if self.started:
            return False
        config = self.config
        size = JointBatch(vectors).size * (config.depth if config.shared_codebook else 1)
        self._warn_of_few(size)
        codebooks = first_codebooks(
            vectors, config.codebook_size, config.depth, config.shared_codebook, config.kmeans_iterations
        )
        # With no less than what keeps a code from restarting at once.
        self.set_codebooks(codebooks, max(1.0, self._least_count(size)))
        return True

    def _least_count(self, size: int) -> float:
        """The moving count below which a code restarts, where `size` vectors of the joint batch take its codebook's."""
        return self.config.restart_below * size / self.codebook_size

    def _warn_of_few(self, size: int) -> None:
        """A line in the log where `size` vectors a step are so few for K codes that their averages are noise."""
        config = self.config
        remembered = size / config.codebook_size / (1 - config.ema_decay)
        if remembered < FEW_VECTORS and distributed.is_main():
            log.warning(
                "a step has %s vectors for the %s codes of a codebook: each code's moving average is of about %.1f "
                "vectors; take a larger joint batch, fewer codes, or a quantizer.ema_decay nearer to 1",
                f"{size:,}",
                f"{config.codebook_size:,}",
                remembered,
            )

    @torch.no_grad()
    def _follow(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Every codebook goes one step towards the vectors float [N, C] that have taken its codes, int64 [N, D].

        Codes hardly used of late restart at vectors of the joint batch, with the count to stay; returns how many.
        """
        restarts = vectors.new_zeros(())
        for book, assigned, code in self._assignments(vectors, codes):
            counts, sums = cluster(assigned, code, self.codebook_size)
            self.counts[book].lerp_(distributed.sum_(counts), 1 - self.config.ema_decay)
            batch = JointBatch(assigned)
            least = self._least_count(batch.size)
            dead = self.counts[book] < least
            self.counts[book].clamp_(min=least)
            # For every code and masked, so that no device has to count the dead ones first. Of the dead ones, no two
            # restart at the same vector as far as the batch reaches.
            order = batch.random_order()
            place = (dead.cumsum(dim=0) - 1).clamp(min=0)
            self.move_codebook(book, sums, dead, batch.share(order[place % len(order)]), least)
            restarts += dead.sum()
        return restarts

    def _assignments(self, vectors: Tensor, codes: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each codebook's index, the residuals that it has quantised, float [M, C], and their codes, int64 [M].

        The consumer may move a codebook once it has it. Residuals are computed again, so that those of all depths
        are in memory only where one codebook serves them all.
        """
        residuals, residual = [], vectors
        for depth, code in enumerate(codes.unbind(dim=-1)):
            book = self.book_of(depth)
            left = residual - F.embedding(code, self.codebooks[book])
            if self.config.shared_codebook:
                residuals.append(residual)
            else:
                yield book, residual, code
            residual = left
        if self.config.shared_codebook:
            # Vector by vector, so that ranks one after the other make the joint batch.
            yield 0, torch.stack(residuals, dim=1).flatten(0, 1), codes.flatten()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_to_have_started = False


def commitment(vectors: Tensor, found: Approximation) -> Tensor:
    """Mean over cumulative depths of |z - sg(z_q^(d))|^2, scalar; vectors: z, float [N, C].

    Its value is the error, its gradient that of |z - sg(z_q^(d))|^2 averaged: the mean residual. Written so, the
    backward pass keeps one tensor instead of D.
    """
    zero = (vectors - vectors.detach()) * found.mean_residual
    return found.error + 2 * zero.sum() / vectors.numel()
