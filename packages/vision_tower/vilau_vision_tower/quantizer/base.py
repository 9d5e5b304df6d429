"""What the tower knows of its quantiser.

A quantiser maps each feature vector to D codes in [0, K). Every code has an embedding of its own, which depends on
nothing but the code and its depth; the D embeddings of a position sum up to the feature that both ends of the tower
read. That is the one condition on a kind of quantiser: the LM embeds codes without having seen the image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from vilau_common.errors import UserError

MAX_CODEBOOK_SIZE = 65_536
MAX_DEPTH = 16


@dataclass(kw_only=True)
class AnyQuantizerConfig:
    """Which quantiser, and its sizes. Subclasses are the choices of the config group `tower/quantizer`.

    depth: D, codes per visual position.
    """

    kind: str = "rq"
    depth: int = 4

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        if not 1 <= self.depth <= MAX_DEPTH:
            raise UserError(f"quantizer.depth is {self.depth}, but each position has 1 to {MAX_DEPTH} codes")

    def follows_features(self) -> bool:
        """Whether codebooks follow the features by themselves, so that they belong to the present encoder alone."""
        return False

    def check_training(self, processes: int) -> None:
        """Raises UserError where this kind cannot be trained in so many processes."""


def check_codebook_size(size: int, setting: str) -> None:
    """Raises UserError, naming `setting`, for a codebook size K out of range."""
    if not 2 <= size <= MAX_CODEBOOK_SIZE:
        raise UserError(f"quantizer.{setting} is {size}, but a codebook has 2 to {MAX_CODEBOOK_SIZE:,} codes")


def check_code_dim(code_dim: int | None) -> None:
    """Raises UserError for a width that no code can have."""
    if code_dim is not None and code_dim < 1:
        raise UserError(f"quantizer.code_dim is {code_dim}; give a width of at least 1, or null for none")


@dataclass
class QuantizerOutput:
    z_q: Tensor  # float [..., width], straight-through
    codes: Tensor  # int64 [..., D]
    commitment: Tensor  # float [], draws features to their codes
    codebook: Tensor  # float [], trains what is learned of the codes by gradient; 0 where nothing is
    # In training mode, of kinds that restart dead codes: float [], how many did, in all codebooks.
    restarts: Tensor | None = None


class Quantizer(nn.Module, ABC):
    """Maps float [..., width] to D codes in [0, K) and a feature of the same width.

    Codes live in a space of `code_width`; where that is not the encoder's width (`code_dim` is given), linear
    projections stand on both sides of it.
    """

    def __init__(self, config: AnyQuantizerConfig, width: int, code_dim: int | None) -> None:
        super().__init__()
        config.validate()
        self.code_width = code_dim or width
        self.depth = config.depth
        self.project_in = nn.Linear(width, code_dim) if code_dim else nn.Identity()
        self.project_out = nn.Linear(code_dim, width) if code_dim else nn.Identity()

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """K: every code lies in [0, K)."""

    @abstractmethod
    def forward(self, z: Tensor) -> QuantizerOutput:
        """float [..., width] -> QuantizerOutput."""

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """int64 [..., D] -> embeddings of each code, float32 [..., D, code_width]."""

    def embed_depth(self, codes: Tensor, depth: int) -> Tensor:
        """int64 [...], codes at one depth -> their embeddings, float32 [..., code_width]."""
        stacks = codes.new_zeros(*codes.shape, self.depth)
        stacks[..., depth] = codes
        return self.embed(stacks)[..., depth, :]

    def dequantize(self, codes: Tensor) -> Tensor:
        """int64 [..., D] -> z_q float [..., width]: the summed embeddings, projected back to the encoder's width."""
        return self.project_out(self.embed(codes).sum(dim=-2))
