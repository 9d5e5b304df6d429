"""The seam between the tower and a CLIP's image encoder: every encoder is cut before its last layer.

    images -> embed -> layers 1..L-1 -> hidden [B, h, w, C]  | quantiser |  z_q -> layer L -> head -> embedding [B, E]

Each family is a thin wrapper around its library's own module (`model`), so that weights keep the library's names.

**Class tokens.** CLIP and most of open_clip's models carry a class token (some also registers) beside the grid, and
pool from it. Its state before the last layer has seen the whole picture: were it handed on, the embedding could be
read from it and the codes would carry nothing. So `pool` puts a learned vector, `class_state`, in its place, the same
for every picture; what the class token then knows it has gathered in the last layer from quantised features alone.
`class_state` starts as the encoder's own state for a plain grey picture. `forward` keeps the token's own state and
equals the library; the tower never calls it.

**Pixels.** Images are float [-1, 1] here, while each CLIP has a mean and a standard deviation of its own for images in
[0, 1]: ((x + 1) / 2 - mean) / std. SigLIP's are 0.5, so that nothing is left to do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLAIN = 0.5  # mean and standard deviation that [-1, 1] already has


class ImageEncoder(nn.Module, ABC):
    """A CLIP's image encoder, in two halves.

    model: the library's image tower; mean, std: its pixel statistics for images in [0, 1], one for each channel.

    Buffers: pixel_scale, pixel_shift float [3, 1, 1] (none where they would change nothing); they are saved, since a
    buffer that is not does not survive `from_pretrained`.
    """

    # Both are set by transformers' activation_checkpointing_enable.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model: Any = model  # a module, of which each family knows more
        plain = all(value == PLAIN for value in (*mean, *std))
        scale, shift = 0.5 / torch.tensor(std), (0.5 - torch.tensor(mean)) / torch.tensor(std)
        self.register_buffer("pixel_scale", None if plain else scale.view(3, 1, 1))
        self.register_buffer("pixel_shift", None if plain else shift.view(3, 1, 1))
        self.pixel_scale: Tensor | None
        self.pixel_shift: Tensor | None
        has_state = self.prefix_tokens > 0
        self.class_state = nn.Parameter(torch.zeros(self.prefix_tokens, self.width)) if has_state else None

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """(h, w): rows and columns of the patches."""

    @property
    @abstractmethod
    def width(self) -> int:
        """C: width of the hidden state."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side of the square images, in pixels."""

    @property
    @abstractmethod
    def prefix_tokens(self) -> int:
        """P: class token and registers, which stand before the grid."""

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The transformer's layers."""

    @property
    @abstractmethod
    def norms(self) -> Sequence[nn.Module]:
        """The norm that each layer's output is read behind: the next layer's first, behind the last the head's."""

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """What the first layer reads: float [B, 3, H, W], as the library wants it -> float [B, P + h * w, C]."""

    @abstractmethod
    def head(self, tokens: Tensor) -> Tensor:
        """From the last layer's output to the embedding: float [B, P + h * w, C] -> float [B, E], of any length."""

    def normalized(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [-1, 1] -> pixels as the library wants them."""
        if self.pixel_scale is None:
            return images
        assert self.pixel_shift is not None
        return images * self.pixel_scale + self.pixel_shift

    def run(self, layer: nn.Module, tokens: Tensor) -> Tensor:
        """One layer, float [B, P + h * w, C] -> the same shape."""
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(layer, tokens)
        return layer(tokens)

    def hidden(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [-1, 1] -> output of the penultimate layer at the patches, float [B, h, w, C]."""
        return self._tokens(images)[:, self.prefix_tokens :].unflatten(1, self.grid)

    def pool(self, features: Tensor) -> Tensor:
        """Features in the place of `hidden`'s, float [B, h, w, C] -> unit embedding float [B, E], of them alone."""
        tokens = features.flatten(1, 2)
        if self.class_state is not None:
            tokens = torch.cat([self.class_state.to(tokens).expand(len(tokens), -1, -1), tokens], dim=1)
        return self._finish(tokens)

    def forward(self, images: Tensor) -> Tensor:
        """The plain CLIP, nothing quantised: float [B, 3, H, W] in [-1, 1] -> unit embedding float [B, E]."""
        return self._finish(self._tokens(images))

    @torch.no_grad()
    def reset_class_state(self) -> None:
        """Let `class_state` be the state of class token and registers for a plain grey picture."""
        if self.class_state is not None:
            was_training = self.training
            grey = torch.zeros(1, 3, self.image_size, self.image_size).to(self.class_state)
            self.class_state.copy_(self.eval()._tokens(grey)[0, : self.prefix_tokens])
            self.train(was_training)

    def _tokens(self, images: Tensor) -> Tensor:
        tokens = self.embed(self.normalized(images))
        for layer in self.layers[:-1]:
            tokens = self.run(layer, tokens)
        return tokens

    def _finish(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.head(self.run(self.layers[-1], tokens)), dim=-1)
