"""The decoder of RQ-VAE and VQGAN, written as their code has it (taming-transformers, diffusionmodules/model.py):
one convolution each for query, key and value, products of all pairs, levels counted from full resolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def normalize(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6, affine=True)


class ResnetBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = normalize(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, 1, 1)
        self.norm2 = normalize(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(swish(self.norm2(self.conv1(swish(self.norm1(x))))))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h


class AttnBlock(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = normalize(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        b, c, height, width = h.shape
        q, k, v = (convolution(h).reshape(b, c, height * width) for convolution in (self.q, self.k, self.v))
        weights = F.softmax(torch.bmm(q.transpose(1, 2), k) * c**-0.5, dim=2)
        return x + self.proj_out(torch.bmm(v, weights.transpose(1, 2)).reshape(b, c, height, width))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


class ReferenceDecoder(nn.Module):
    """embed_dim -> z_channels by the 1x1 post_quant_conv, then the decoder proper."""

    def __init__(
        self,
        *,
        embed_dim: int,
        z_channels: int,
        ch: int,
        ch_mult: list[int],
        num_res_blocks: int,
        attn_resolutions: list[int],
        resolution: int,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        block_in = ch * ch_mult[-1]
        current = resolution // 2 ** (len(ch_mult) - 1)
        self.conv_in = nn.Conv2d(z_channels, block_in, 3, 1, 1)
        self.mid: Any = nn.Module()
        self.mid.block_1 = ResnetBlock(block_in, block_in, groups)
        self.mid.attn_1 = AttnBlock(block_in, groups)
        self.mid.block_2 = ResnetBlock(block_in, block_in, groups)
        self.up: Any = nn.ModuleList()
        for level in reversed(range(len(ch_mult))):
            up: Any = nn.Module()
            up.block, up.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(num_res_blocks + 1):
                up.block.append(ResnetBlock(block_in, ch * ch_mult[level], groups))
                block_in = ch * ch_mult[level]
                if current in attn_resolutions:
                    up.attn.append(AttnBlock(block_in, groups))
            if level != 0:
                up.upsample = Upsample(block_in)
                current *= 2
            self.up.insert(0, up)
        self.norm_out = normalize(block_in, groups)
        self.conv_out = nn.Conv2d(block_in, 3, 3, 1, 1)

    def forward(self, z_q: Tensor) -> Tensor:
        h = self.conv_in(self.post_quant_conv(z_q))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        for level in reversed(range(len(self.up))):
            for number, block in enumerate(self.up[level].block):
                h = block(h)
                if len(self.up[level].attn) > 0:
                    h = self.up[level].attn[number](h)
            if level != 0:
                h = self.up[level].upsample(h)
        return self.conv_out(swish(self.norm_out(h)))

    def in_order(self) -> list[nn.Module]:
        """Convolutions and norms from features to pixels; of attention query, key, value, output behind the norm."""
        modules = [self.post_quant_conv, self.conv_in, self.mid.block_1, self.mid.attn_1, self.mid.block_2]
        for level in reversed(range(len(self.up))):
            for number, block in enumerate(self.up[level].block):
                modules += [block, *self.up[level].attn[number : number + 1]]
            if level != 0:
                modules.append(self.up[level].upsample)
        leaves = [leaf for module in (*modules, self.norm_out, self.conv_out) for leaf in module.modules()]
        return [leaf for leaf in leaves if isinstance(leaf, nn.Conv2d | nn.GroupNorm)]
