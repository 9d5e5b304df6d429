"""The depth transformer (Lee et al. 2022, section 3.2; VILA-U, section 3.2).

For each visual position it predicts the D codes one after another. Its input at depth 0 is a linear map of the
LM's hidden state; at depth d, of the sum of the first d code embeddings; plus a learned depth position:

    u_0 = W_h h + p_0        u_d = W_e sum_{j<d} e_j(k_j) + p_d        logits_d = head(transformer(u_0..u_d))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vilau_unified_lm.config import DepthConfig


@dataclass
class DepthCache:
    """Keys and values of the depths taken so far; one fixed buffer, so that no step allocates."""

    keys: Tensor  # float [layers, N, heads, D, head width]
    values: Tensor  # the same
    length: int = 0


class DepthTransformer(nn.Module):
    """Pre-LN transformer with GELU and biases over the D codes of a position; one K-way head for all depths.

    Initialisation: linear weights normal(0, std), biases 0, norms 1 and 0; depth positions normal(0, std).
    """

    def __init__(
        self, config: DepthConfig, hidden: int, feature_width: int, codebook_size: int, depth: int, std: float
    ) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.depth = depth
        self.from_hidden = nn.Linear(hidden, config.width)
        self.from_features = nn.Linear(feature_width, config.width)
        self.positions = nn.Parameter(torch.randn(depth, config.width) * std)
        self.blocks = nn.ModuleList([DepthBlock(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, codebook_size)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def forward(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """The last layer's states float [N, D, width], by teacher forcing.

        hidden: float [N, hidden]; embeddings: float [N, D, C], of the true codes; the last depth's is never read.
        """
        first = self.from_hidden(hidden.to(self.positions.device)).unsqueeze(1)
        rest = self.from_features(
            embeddings[:, :-1].cumsum(dim=1).to(self.positions.device, self.positions.dtype)
        )
        x = torch.cat([first, rest], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return x

    def logits(self, states: Tensor) -> Tensor:
        """States float [..., width] -> [..., K]."""
        return self.head(self.norm(states))

    def start_cache(self, count: int, like: Tensor) -> DepthCache:
        """An empty cache for `count` positions, of the dtype and device of `like`."""
        head_width = self.config.width // self.config.heads
        shape = (self.config.layers, count, self.config.heads, self.depth, head_width)
        return DepthCache(keys=like.new_empty(shape), values=like.new_empty(shape))

    def step(self, source: Tensor, cache: DepthCache) -> Tensor:
        """Logits float [N, K] of the next depth.

        source: at depth 0 the LM's hidden states [N, hidden], later the summed embeddings so far [N, C].
        """
        depth = cache.length
        # Code embeddings are float32 whatever the weights are, and a large LM may end on another device.
        if depth == 0:
            x = self.from_hidden(source.to(self.positions.device))
        else:
            x = self.from_features(source.to(self.positions.device, self.positions.dtype))
        x = x + self.positions[depth]
        for index, block in enumerate(self.blocks):
            assert isinstance(block, DepthBlock)
            x = block.step(x, cache.keys[index], cache.values[index], depth)
        cache.length += 1
        return self.logits(x)


class DepthBlock(GradientCheckpointingLayer):
    """Causal self-attention and an MLP four times as wide, each behind a layer norm.

    Computed again in the backward pass where the model's activation checkpointing is on.
    """

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, 4 * config.width)
        self.down = nn.Linear(4 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """float [N, D, width] -> the same."""
        query, key, value = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(dim=2)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=True
        )
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self._mlp(x)

    def step(self, x: Tensor, keys: Tensor, values: Tensor, depth: int) -> Tensor:
        """One depth: x float [N, width]; keys, values [N, heads, D, head width], filled up to `depth` here."""
        query, key, value = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(dim=1)
        keys[:, :, depth], values[:, :, depth] = key, value
        mixed = F.scaled_dot_product_attention(
            query.unsqueeze(2), keys[:, :, : depth + 1], values[:, :, : depth + 1]
        )
        x = x + self.out(mixed.flatten(1))
        return x + self._mlp(x)

    def _mlp(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.gelu(self.up(self.mlp_norm(x)))))
