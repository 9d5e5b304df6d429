"""The seam between the two trained parts: all that the unified LM knows of the vision tower.

An image tokenizer turns an image into a grid of h x w *visual positions*, each a stack of D codes in [0, K),
and back. Any module that fulfils `ImageTokenizer` can stand behind a unified LM.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class ImageTokenizer(ABC):
    """Images <-> codes. Implementations are `nn.Module`s; every method works on whole batches."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """(h, w): rows and columns of visual positions."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """D: codes per visual position."""

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """K: every code lies in [0, K)."""

    @property
    @abstractmethod
    def feature_width(self) -> int:
        """C: width of a code's embedding."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side of the square images, in pixels."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """float32 [B, 3, H, W] in [-1, 1] -> codes int64 [B, h, w, D]."""

    @abstractmethod
    def embed_codes(self, codes: Tensor) -> Tensor:
        """codes int64 [..., D] -> their embeddings per depth, float [..., D, C].

        The sum over D is the visual feature z_q; its cumulative sum is what the depth transformer reads.
        """

    @abstractmethod
    def embed_depth(self, codes: Tensor, depth: int) -> Tensor:
        """codes int64 [...] at one depth -> their embeddings, float [..., C]: what `embed_codes` has at that depth."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """codes int64 [B, h, w, D] -> images float32 [B, 3, H, W] in [-1, 1]."""
