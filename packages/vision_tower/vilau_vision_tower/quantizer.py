"""Residual quantisation (Lee et al. 2022, arXiv 2203.01941, section 3.1), as VILA-U applies it (section 3.1).

A vector z is approximated by a sum of D code embeddings, each depth quantising what the former ones left over:

    r_0 = z,   k_d = argmin_k |r_{d-1} - e_d(k)|^2,   r_d = r_{d-1} - e_d(k_d),   z_q = sum_d e_d(k_d)

Codebooks are exponential moving averages of the residuals assigned to them (no gradient); codes that fall out
of use restart at residuals of the present batch. Gradients pass straight through: dz_q/dz = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vilau_common.errors import UserError

# Laplace smoothing of the moving counts, as in the EMA codebooks of VQ-VAE-2: keeps a nearly unused code finite.
COUNT_EPSILON = 1e-5


@dataclass(kw_only=True)
class QuantizerConfig:
    """Residual quantiser.

    codebook_size: K, codes per codebook. depth: D, codes per visual position.
    shared_codebook: one codebook for all depths, or one each.
    code_dim: width of the code embeddings; None takes the encoder's width without a projection (as published).
    ema_decay: of the codebooks' moving averages. restart_below: a code whose moving count falls below this many
    vectors a step restarts at a residual of the batch.
    """

    codebook_size: int = 16384
    depth: int = 4
    shared_codebook: bool = False
    code_dim: int | None = None
    ema_decay: float = 0.99
    restart_below: float = 1.0

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        if self.codebook_size < 2:
            raise UserError(
                f"quantizer.codebook_size is {self.codebook_size}, but a codebook needs at least 2 codes"
            )
        if self.depth < 1:
            raise UserError(f"quantizer.depth is {self.depth}, but each position needs at least 1 code")
        if self.code_dim is not None and self.code_dim < 1:
            raise UserError(
                f"quantizer.code_dim is {self.code_dim}; give a width of at least 1, or null for none"
            )
        if not 0 < self.ema_decay < 1:
            raise UserError(f"quantizer.ema_decay is {self.ema_decay}, but a decay lies between 0 and 1")


@dataclass
class QuantizerOutput:
    z_q: Tensor  # float [..., C], straight-through
    codes: Tensor  # int64 [..., D]
    commitment: Tensor  # float [], mean over cumulative depths of |z - sg(z_q^(d))|^2


class ResidualQuantizer(nn.Module):
    """Maps float [..., width] to D codes in [0, K) and their summed embedding of the same width.

    Buffers: `codebooks` float32 [S, K, code_dim] with S = 1 (shared) or D; `counts` [S, K] and `sums`
    [S, K, code_dim] are their moving averages; `started` tells whether the codebooks hold data yet.

    Initialisation: the codebooks are drawn from the first training batch's residuals, depth by depth (a
    random start leaves most codes far from every vector); projections take PyTorch's default.
    """

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__()
        config.validate()
        self.config = config
        dim = config.code_dim or width
        books = 1 if config.shared_codebook else config.depth
        self.project_in = nn.Linear(width, dim) if config.code_dim else nn.Identity()
        self.project_out = nn.Linear(dim, width) if config.code_dim else nn.Identity()
        self.register_buffer("codebooks", torch.zeros(books, config.codebook_size, dim))
        self.register_buffer("counts", torch.zeros(books, config.codebook_size))
        self.register_buffer("sums", torch.zeros(books, config.codebook_size, dim))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.codebooks: Tensor
        self.counts: Tensor
        self.sums: Tensor
        self.started: Tensor

    @property
    def code_width(self) -> int:
        """Width of a code's embedding."""
        return self.codebooks.shape[-1]

    def book_of(self, depth: int) -> int:
        """Index of the codebook that depth `depth` reads."""
        return 0 if self.config.shared_codebook else depth

    def forward(self, z: Tensor) -> QuantizerOutput:
        """float [..., width] -> QuantizerOutput. In training mode the codebooks move after the codes are taken."""
        latent = self.project_in(z)
        flat = latent.detach().reshape(-1, self.code_width).float()
        if self.training and not self.started:
            self._start(flat)
        residual, quantized = flat, torch.zeros_like(flat)
        codes, inputs, partial_sums = [], [], []
        for depth in range(self.config.depth):
            book = self.codebooks[self.book_of(depth)]
            code = nearest_code(residual, book)
            inputs.append(residual)
            codes.append(code)
            residual = residual - book[code]
            quantized = quantized + book[code]
            partial_sums.append(quantized)
        if self.training:
            self._update(inputs, codes)
        target = latent.reshape(-1, self.code_width)
        commitment = torch.stack([(target - partial).square().mean() for partial in partial_sums]).mean()
        straight_through = latent + (quantized.view_as(latent) - latent).detach()
        return QuantizerOutput(
            z_q=self.project_out(straight_through),
            codes=torch.stack(codes, dim=-1).view(*z.shape[:-1], self.config.depth),
            commitment=commitment,
        )

    def embed(self, codes: Tensor) -> Tensor:
        """int64 [..., D] -> embeddings of each code, float [..., D, code_width]."""
        books = [self.codebooks[self.book_of(depth)][codes[..., depth]] for depth in range(self.config.depth)]
        return torch.stack(books, dim=-2)

    def dequantize(self, codes: Tensor) -> Tensor:
        """int64 [..., D] -> z_q float [..., width]: the summed embeddings, projected back to the encoder's width."""
        return self.project_out(self.embed(codes).sum(dim=-2))

    @torch.no_grad()
    def _start(self, flat: Tensor) -> None:
        """Codebooks from the first batch: random residuals, depth by depth."""
        residual = flat
        for depth in range(self.config.depth):
            book = self.book_of(depth)
            if depth == 0 or not self.config.shared_codebook:
                self.codebooks[book] = draw(residual, self.config.codebook_size)
            elif self.config.shared_codebook:
                # A shared codebook must cover coarse and fine residuals: each depth contributes a share of codes.
                share = slice(depth * self.config.codebook_size // self.config.depth, None)
                self.codebooks[0, share] = draw(residual, self.config.codebook_size)[share]
            residual = residual - self.codebooks[book][nearest_code(residual, self.codebooks[book])]
        if dist.is_initialized():
            dist.broadcast(self.codebooks, src=0)
        self.sums.copy_(self.codebooks)
        self.counts.fill_(1.0)
        self.started.fill_(True)

    @torch.no_grad()
    def _update(self, inputs: list[Tensor], codes: list[Tensor]) -> None:
        """One EMA step: codes move to the mean of the residuals assigned to them; dead ones restart."""
        decay, size = self.config.ema_decay, self.config.codebook_size
        counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        for depth, (residual, code) in enumerate(zip(inputs, codes, strict=True)):
            book = self.book_of(depth)
            counts[book] += torch.bincount(code, minlength=size)
            sums[book].index_add_(0, code, residual)
        if dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.counts.mul_(decay).add_(counts, alpha=1 - decay)
        self.sums.mul_(decay).add_(sums, alpha=1 - decay)
        for book in range(self.codebooks.shape[0]):
            self._restart_dead(book, torch.cat(inputs) if self.config.shared_codebook else inputs[book])
        total = self.counts.sum(dim=-1, keepdim=True)
        smoothed = (self.counts + COUNT_EPSILON) / (total + size * COUNT_EPSILON) * total
        self.codebooks.copy_(self.sums / smoothed.unsqueeze(-1))

    def _restart_dead(self, book: int, residual: Tensor) -> None:
        """Codes hardly used of late take the place of random residuals of this batch, with the count to stay."""
        dead = (self.counts[book] < self.config.restart_below).unsqueeze(-1)
        # Drawn for every code and masked, so that no rank and no device has to count the dead ones first.
        fresh = draw(residual, self.config.codebook_size)
        if dist.is_initialized():
            dist.broadcast(fresh, src=0)
        self.sums[book] = torch.where(dead, fresh * self.config.restart_below, self.sums[book])
        self.counts[book].clamp_(min=self.config.restart_below)


def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """float [N, C], float [K, C] -> int64 [N], the nearest code in Euclidean distance (|v|^2 is the same for all)."""
    # In float32 whatever autocast does: bf16 distances confuse close codes.
    with torch.autocast(vectors.device.type, enabled=False):
        return torch.addmm(codebook.square().sum(dim=-1), vectors, codebook.T, beta=1, alpha=-2).argmin(
            dim=-1
        )


def draw(vectors: Tensor, count: int) -> Tensor:
    """`count` random rows of float [N, C]; without repetition as far as N reaches."""
    order = torch.randperm(vectors.shape[0], device=vectors.device)
    return vectors[order.repeat(-(-count // vectors.shape[0]))[:count]]
