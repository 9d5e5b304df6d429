"""Pixel decoders: visual features z_q [B, C, h, w] -> images [B, 3, H, W].

`ConvDecoder` is the RQ-VAE decoder (Lee et al. 2022, appendix; the VQGAN decoder of Esser et al. 2021) behind a
1x1 convolution, as VILA-U uses it. `TransformerDecoder` is the ViT decoder of ViT-VQGAN (Yu et al. 2021): a
transformer over the grid and one linear map from each position to its patch of pixels; on small images it
costs a fraction of the convolutions at full resolution.

The blocks of both are transformers' `GradientCheckpointingLayer`s: where the tower's activation checkpointing is
on, each keeps its input only, and is computed again in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vilau_common.errors import UserError

# Of RQ-VAE's group norms; PyTorch's own default is 1e-5.
NORM_EPSILON = 1e-6


@dataclass(kw_only=True)
class DecoderConfig:
    """Which decoder, and its sizes. Subclasses are the choices of the `decoder` config group."""

    kind: str = "conv"


@dataclass(kw_only=True)
class ConvDecoderConfig(DecoderConfig):
    """The sizes of RQ-VAE and VILA-U (42M parameters) by default.

    latent_channels: what the 1x1 convolution makes of the features. channels: width at full resolution.
    channel_multipliers: from full resolution down to the latent one (each step between two halves the side).
    residual_blocks: of each resolution (RQ-VAE's `num_res_blocks` of 2, to which its decoder adds one).
    attention: self-attention in the middle, and after every residual block of `attention_levels`. Levels are counted
    from full resolution, as channel_multipliers are; None takes the latent one. groups: of GroupNorm.
    latent_size: side of the latent grid that features are interpolated to; None takes the one whose image has the
    tower's size.
    """

    kind: str = "conv"
    latent_channels: int = 256
    channels: int = 128
    channel_multipliers: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4])
    residual_blocks: int = 3
    attention: bool = True
    attention_levels: list[int] | None = None
    groups: int = 32
    latent_size: int | None = None


@dataclass(kw_only=True)
class TransformerDecoderConfig(DecoderConfig):
    """width, layers, heads of the transformer over the grid; its patches tile the image."""

    kind: str = "transformer"
    width: int = 512
    layers: int = 8
    heads: int = 8


DECODER_CONFIGS: dict[str, type[DecoderConfig]] = {
    "conv": ConvDecoderConfig,
    "transformer": TransformerDecoderConfig,
}


def decoder_config(values: dict[str, object]) -> DecoderConfig:
    """A typed decoder configuration from the plain dict that a saved tower carries."""
    kind = values.get("kind")
    if kind not in DECODER_CONFIGS:
        raise UserError(f"decoder.kind is {kind!r}; the decoders are {', '.join(sorted(DECODER_CONFIGS))}")
    return DECODER_CONFIGS[str(kind)](**values)  # type: ignore[arg-type]  # values come from asdict()


def build_decoder(
    config: DecoderConfig, width: int, grid: tuple[int, int], image_size: int
) -> ConvDecoder | TransformerDecoder:
    """The decoder that `config` describes, for features of `width` on `grid` and square images of `image_size`."""
    if isinstance(config, ConvDecoderConfig):
        return ConvDecoder(config, width, image_size)
    assert isinstance(config, TransformerDecoderConfig)
    return TransformerDecoder(config, width, grid, image_size)


class ConvDecoder(nn.Module):
    """1x1 convolution, 3x3 convolution, two residual blocks with attention between, then at each resolution residual
    blocks and nearest up-sampling.

    Where the grid is not the latent size (by itself image_size / 2^(levels - 1)), features are interpolated bilinearly
    to it (27x27 -> 24x24 in VILA-U 384).
    """

    def __init__(self, config: ConvDecoderConfig, width: int, image_size: int) -> None:
        super().__init__()
        self.config = config
        factor = 2 ** (len(config.channel_multipliers) - 1)
        if config.latent_size is None and image_size % factor:
            raise UserError(
                f"decoder.channel_multipliers has {len(config.channel_multipliers)} levels, so the image size must "
                f"divide by {factor}, but it is {image_size}"
            )
        self.latent_size = config.latent_size or image_size // factor
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        for channels in widths:
            if channels % config.groups:
                raise UserError(
                    f"decoder.groups is {config.groups}, which does not divide the {channels} channels"
                )
        attention_levels = (
            {len(widths) - 1} if config.attention_levels is None else set(config.attention_levels)
        )
        if not attention_levels <= set(range(len(widths))):
            raise UserError(
                f"decoder.attention_levels is {config.attention_levels}, but the levels are 0 to {len(widths) - 1}"
            )
        channels, groups = widths[-1], config.groups
        self.latent = nn.Conv2d(width, config.latent_channels, 1)
        self.input = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.middle = nn.Sequential(
            ResidualBlock(channels, channels, groups),
            AttentionBlock(channels, groups) if config.attention else nn.Identity(),
            ResidualBlock(channels, channels, groups),
        )
        blocks: list[nn.Module] = []
        for level, level_width in reversed(list(enumerate(widths))):
            for _ in range(config.residual_blocks):
                blocks.append(ResidualBlock(channels, level_width, groups))
                channels = level_width
                if config.attention and level in attention_levels:
                    blocks.append(AttentionBlock(channels, groups))
            if level > 0:
                blocks.append(UpSample(channels))
        self.up = nn.Sequential(*blocks)
        self.norm = group_norm(groups, channels)
        self.output = nn.Conv2d(channels, 3, 3, padding=1)

    @property
    def last_weight(self) -> Tensor:
        """The weight that makes the pixels: where VQGAN compares the losses' gradients."""
        return self.output.weight

    def forward(self, features: Tensor) -> Tensor:
        """float [B, C, h, w] -> float [B, 3, H, W], about [-1, 1]."""
        latent = self.latent(features.to(self.latent.weight.dtype))  # quantised ones stay in float32
        if latent.shape[-2:] != (self.latent_size, self.latent_size):
            # After the 1x1 convolution, with which it commutes: there are fewer channels now.
            size = (self.latent_size, self.latent_size)
            latent = F.interpolate(latent, size=size, mode="bilinear", align_corners=False)
        return self.output(F.silu(self.norm(self.up(self.middle(self.input(latent))))))


def group_norm(groups: int, channels: int) -> nn.GroupNorm:
    """GroupNorm as RQ-VAE has it."""
    return nn.GroupNorm(groups, channels, eps=NORM_EPSILON)


class ResidualBlock(GradientCheckpointingLayer):
    """Norm, SiLU, 3x3 convolution, twice, around a skip connection."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            group_norm(groups, channels_in),
            nn.SiLU(),
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            group_norm(groups, channels_out),
            nn.SiLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
        )
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class AttentionBlock(GradientCheckpointingLayer):
    """Single-head self-attention over all pixels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.squeeze(1).transpose(1, 2).view_as(x))


class UpSample(GradientCheckpointingLayer):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TransformerLayer(GradientCheckpointingLayer, nn.TransformerEncoderLayer):
    """PyTorch's layer, computed again in the backward pass where activation checkpointing is on."""


class TransformerDecoder(nn.Module):
    """Pre-norm transformer over the grid with learned positions; each position emits its own patch of pixels."""

    def __init__(
        self, config: TransformerDecoderConfig, width: int, grid: tuple[int, int], image_size: int
    ) -> None:
        super().__init__()
        if image_size % grid[0] or image_size % grid[1]:
            raise UserError(
                f"decoder.kind=transformer needs a grid that tiles the image, but {grid[0]}x{grid[1]} positions do "
                f"not tile {image_size} pixels; use decoder.kind=conv"
            )
        if config.width % config.heads:
            raise UserError(f"decoder.width {config.width} is not a multiple of decoder.heads {config.heads}")
        self.patch = (image_size // grid[0], image_size // grid[1])
        self.grid = grid
        self.input = nn.Linear(width, config.width)
        self.position = nn.Embedding(grid[0] * grid[1], config.width)
        nn.init.normal_(self.position.weight, std=config.width**-0.5)
        # Not nn.TransformerEncoder: it copies one layer, so that all would start with the same weights.
        self.layers = nn.Sequential(
            *(
                TransformerLayer(
                    config.width,
                    config.heads,
                    4 * config.width,
                    dropout=0.0,
                    activation="gelu",
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(config.layers)
            )
        )
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, 3 * self.patch[0] * self.patch[1])

    @property
    def last_weight(self) -> Tensor:
        """The weight that makes the pixels: where VQGAN compares the losses' gradients."""
        return self.output.weight

    def forward(self, features: Tensor) -> Tensor:
        """float [B, C, h, w] -> float [B, 3, H, W], about [-1, 1]."""
        features = features.to(self.input.weight.dtype)  # quantised ones stay in float32
        x = self.input(features.flatten(2).transpose(1, 2)) + self.position.weight
        pixels = self.output(self.norm(self.layers(x))).transpose(1, 2)
        size = (self.grid[0] * self.patch[0], self.grid[1] * self.patch[1])
        return F.fold(pixels, size, kernel_size=self.patch, stride=self.patch)
