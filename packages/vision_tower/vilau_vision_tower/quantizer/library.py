"""Other residual quantisers, those of vector-quantize-pytorch, behind our seam.

- FSQ (Mentzer et al. 2023, arXiv 2309.15505): every channel rounds to one of a few levels; nothing is learned.
- LFQ (Yu et al. 2023, arXiv 2310.05737): every channel to its sign; an entropy loss keeps the codes in use.
- SimVQ (Zhu et al. 2024, arXiv 2411.02038): a frozen random codebook behind a learned linear map.

Each depth quantises what the former ones left over. The library's own projections stay unused: ours (`Quantizer`)
stand around it. Distances and probabilities are not computed in blocks there: LFQ in training and SimVQ take N x K
numbers a depth.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilau_common import distributed
from vilau_common.errors import UserError
from vilau_vision_tower.quantizer.base import (
    AnyQuantizerConfig,
    Quantizer,
    QuantizerOutput,
    check_code_dim,
    check_codebook_size,
)
from vilau_vision_tower.quantizer.search import full_float32

# SimVQ's codebooks are drawn once and frozen: from this seed, so that all ranks hold the same.
FROZEN_SEED = 0


@dataclass(kw_only=True)
class FsqConfig(AnyQuantizerConfig):
    """levels: so many values for each channel of a code; their product is K. The paper's for K = 1,000: 8, 5, 5, 5."""

    kind: str = "fsq"
    levels: list[int] = field(default_factory=lambda: [8, 5, 5, 5])

    @property
    def codebook_size(self) -> int:
        """K."""
        return math.prod(self.levels)

    def validate(self) -> None:
        super().validate()
        if not self.levels:
            raise UserError("quantizer.levels is empty; give the number of levels of each channel")
        if any(level < 2 for level in self.levels):
            raise UserError(f"quantizer.levels are {self.levels}, but a channel has at least 2 levels")
        check_codebook_size(self.codebook_size, "levels' product")


@dataclass(kw_only=True)
class LfqConfig(AnyQuantizerConfig):
    """codebook_size: K, a power of 2; a code has log2(K) channels.

    entropy_weight: of the entropy loss within the loss term `codebook`.
    """

    kind: str = "lfq"
    codebook_size: int = 1024
    entropy_weight: float = 0.1

    def validate(self) -> None:
        super().validate()
        check_codebook_size(self.codebook_size, "codebook_size")
        if self.codebook_size & (self.codebook_size - 1):
            raise UserError(
                f"quantizer.codebook_size is {self.codebook_size}, but codes of kind lfq are signs: give a power of 2"
            )

    def check_training(self, processes: int) -> None:
        # The library drops the sum over processes of the codes' probabilities, and divides by their number.
        if processes > 1:
            raise UserError(
                "quantizer.kind=lfq trains in one process only: in several, vector-quantize-pytorch computes its "
                "entropy loss wrongly; use another kind"
            )


@dataclass(kw_only=True)
class SimVqConfig(AnyQuantizerConfig):
    """codebook_size: K. code_dim: width of the code embeddings; None takes the encoder's without a projection."""

    kind: str = "simvq"
    codebook_size: int = 1024
    code_dim: int | None = None

    def validate(self) -> None:
        super().validate()
        check_codebook_size(self.codebook_size, "codebook_size")
        check_code_dim(self.code_dim)


class LibraryQuantizer(Quantizer):
    """A residual quantiser of the library; `library` is the module itself.

    Initialisation: as the library's; projections take PyTorch's default.
    """

    config: FsqConfig | LfqConfig | SimVqConfig
    library: Any  # it has no types

    def __init__(self, config: FsqConfig | LfqConfig | SimVqConfig, width: int, code_dim: int | None) -> None:
        super().__init__(config, width, code_dim)
        self.config = config
        self.library = self.build_library()
        # The library's constants go into checkpoints, too: `from_pretrained` leaves other buffers empty.
        for module in self.library.modules():
            for name, constant in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, constant)

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @abstractmethod
    def build_library(self) -> nn.Module:
        """The library's module for codes of `code_width`."""

    def forward(self, z: Tensor) -> QuantizerOutput:
        """float [..., width] -> QuantizerOutput."""
        latent = self.project_in(z)
        vectors = latent.reshape(1, -1, self.code_width).float()
        with full_float32(z.device):
            # losses: of the kinds that have one, float [D] or [1, D].
            quantized, codes, *losses = self.library(vectors)
        codes = codes.long()
        return QuantizerOutput(
            z_q=self.project_out(self.straight_through(vectors, quantized).view_as(latent)),
            codes=codes.view(*z.shape[:-1], self.depth),
            commitment=self.commitment(vectors, codes),
            codebook=losses[0].mean() if losses else vectors.new_zeros(()),
        )

    def straight_through(self, vectors: Tensor, quantized: Tensor) -> Tensor:
        """`quantized`, its gradient passed to `vectors` once; the library would pass it once for every depth."""
        return vectors + (quantized - vectors).detach()

    def commitment(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Mean over cumulative depths of |z - sg(z_q^(d))|^2, as of the residual quantiser."""
        partial_sums = self.embed(codes).detach().cumsum(dim=-2)
        return (vectors.unsqueeze(-2) - partial_sums).square().mean()

    def embed(self, codes: Tensor) -> Tensor:
        rows = self.library.get_codes_from_indices(codes.reshape(1, -1, self.depth))  # [D, 1, N, C]
        return rows.squeeze(1).transpose(0, 1).reshape(*codes.shape, self.code_width)


class FsqQuantizer(LibraryQuantizer):
    """Residual FSQ. Features are bounded by a tanh first, whose gradient they keep; they need no commitment."""

    def __init__(self, config: FsqConfig, width: int) -> None:
        config.validate()
        super().__init__(config, width, len(config.levels))

    def build_library(self) -> nn.Module:
        from vector_quantize_pytorch import ResidualFSQ

        assert isinstance(self.config, FsqConfig)
        # It multiplies its levels as tensors and looks at the product, which the meta device cannot.
        with torch.device("cpu"):
            return ResidualFSQ(levels=list(self.config.levels), num_quantizers=self.depth)

    def straight_through(self, vectors: Tensor, quantized: Tensor) -> Tensor:
        limit = self.library.soft_clamp_input_value
        return super().straight_through((vectors / limit).tanh() * limit, quantized)

    def commitment(self, vectors: Tensor, codes: Tensor) -> Tensor:
        return vectors.new_zeros(())


class LfqQuantizer(LibraryQuantizer):
    """Residual LFQ. The loss term `codebook` is its entropy loss: sure of each code, unsure over the batch."""

    def __init__(self, config: LfqConfig, width: int) -> None:
        config.validate()
        super().__init__(config, width, int(math.log2(config.codebook_size)))

    def build_library(self) -> nn.Module:
        from vector_quantize_pytorch import ResidualLFQ

        assert isinstance(self.config, LfqConfig)
        return ResidualLFQ(
            dim=self.code_width,
            num_quantizers=self.depth,
            codebook_size=self.codebook_size,
            entropy_loss_weight=self.config.entropy_weight,
        )

    def forward(self, z: Tensor) -> QuantizerOutput:
        if self.training:
            self.config.check_training(distributed.world_size())
        return super().forward(z)


class SimVqQuantizer(LibraryQuantizer):
    """Residual SimVQ. The loss term `codebook` trains the linear maps: |sg(r_{d-1}) - e_d(k_d)|^2 over depths."""

    def __init__(self, config: SimVqConfig, width: int) -> None:
        super().__init__(config, width, config.code_dim)

    def build_library(self) -> nn.Module:
        from vector_quantize_pytorch import ResidualSimVQ

        generator = torch.Generator("cpu").manual_seed(FROZEN_SEED)

        def draw(codebook: Tensor) -> Tensor:
            rows = torch.randn(codebook.shape, generator=generator, device="cpu")
            return rows.to(codebook.device) * codebook.shape[-1] ** -0.5

        return ResidualSimVQ(
            dim=self.code_width,
            num_quantizers=self.depth,
            codebook_size=self.codebook_size,
            init_fn=draw,
            rotation_trick=False,
            input_to_quantize_commit_loss_weight=0.0,  # the commitment is a term of its own
        )

    def embed(self, codes: Tensor) -> Tensor:
        rows = [self.embed_depth(code, depth) for depth, code in enumerate(codes.unbind(dim=-1))]
        return torch.stack(rows, dim=-2)

    def embed_depth(self, codes: Tensor, depth: int) -> Tensor:
        # As the library's `get_codes_from_indices`, which maps all K codes first.
        layer = self.library.layers[depth]
        with full_float32(codes.device):
            return layer.code_transform(F.embedding(codes, layer.frozen_codebook))
