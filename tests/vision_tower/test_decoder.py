"""The two pixel decoders: shapes, where each position's pixels land, and which sizes fit."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from reference_decoder import AttnBlock, ReferenceDecoder
from torch import nn

from vilau_common.errors import UserError
from vilau_vision_tower.decoder import (
    AttentionBlock,
    ConvDecoder,
    ConvDecoderConfig,
    DecoderConfig,
    ResidualBlock,
    TransformerDecoder,
    TransformerDecoderConfig,
    build_decoder,
    decoder_config,
)

WIDTH = 6


def conv(levels: int = 3, attention: bool = True, image_size: int = 32) -> ConvDecoder:
    config = ConvDecoderConfig(
        latent_channels=5,
        channels=4,
        channel_multipliers=[1, 2, 3][:levels],
        residual_blocks=1,
        attention=attention,
        groups=2,
    )
    return ConvDecoder(config, WIDTH, image_size).eval()


def transformer(grid: tuple[int, int] = (4, 4), layers: int = 1, image_size: int = 32) -> TransformerDecoder:
    config = TransformerDecoderConfig(width=8, layers=layers, heads=2)
    return TransformerDecoder(config, WIDTH, grid, image_size).eval()


@pytest.mark.parametrize(
    ("decoder", "grid"),
    [
        (conv(), (8, 8)),
        (conv(attention=False), (8, 8)),
        (conv(levels=1), (32, 32)),
        (conv(levels=2), (5, 5)),
        (transformer(), (4, 4)),
        (transformer(grid=(2, 8)), (2, 8)),
    ],
)
def test_features_become_images(decoder: torch.nn.Module, grid: tuple[int, int]) -> None:
    images = decoder(torch.randn(2, WIDTH, *grid))
    assert images.shape == (2, 3, 32, 32)
    assert images.dtype == torch.float32


def test_every_weight_of_a_decoder_matters() -> None:
    for decoder, side in ((conv(), 8), (transformer(), 4)):
        decoder(torch.randn(2, WIDTH, side, side)).square().sum().backward()
        for name, weight in decoder.named_parameters():
            assert weight.grad is not None, name
            # A key's bias shifts all of a query's scores alike, and so cannot matter.
            assert weight.grad.abs().sum() > 0, name


def test_convolutions_are_wide_where_the_picture_is_small() -> None:
    """The multipliers go from full resolution down to the latent one."""
    seen: dict[int, set[int]] = {}
    decoder = conv()
    for module in decoder.modules():
        if isinstance(module, ResidualBlock):
            module.register_forward_hook(
                lambda _, __, out: seen.setdefault(out.shape[-1], set()).add(out.shape[1])
            )
    decoder(torch.randn(1, WIDTH, 8, 8))
    assert seen == {8: {12}, 16: {8}, 32: {4}}


def test_attention_stands_where_it_is_asked_for() -> None:
    def attended(levels: list[int] | None) -> list[int]:
        config = ConvDecoderConfig(
            latent_channels=5,
            channels=4,
            channel_multipliers=[1, 2, 3],
            residual_blocks=1,
            attention_levels=levels,
            groups=2,
        )
        decoder, sides = ConvDecoder(config, WIDTH, 32), []
        for module in decoder.up:
            if isinstance(module, AttentionBlock):
                module.register_forward_hook(lambda _, __, out: sides.append(out.shape[-1]))
        decoder(torch.randn(1, WIDTH, 8, 8))
        return sides

    assert (attended(None), attended([]), attended([0, 1])) == ([8], [], [16, 32])
    with pytest.raises(UserError, match="attention_levels is .*3.*levels are 0 to 2"):
        attended([3])


def test_the_convolutional_decoder_is_rq_vaes() -> None:
    """Pixels and gradients, with its weights."""
    sizes = {"embed_dim": WIDTH, "z_channels": 5, "ch": 4, "ch_mult": [1, 2, 3], "groups": 2}
    reference = ReferenceDecoder(**sizes, num_res_blocks=1, attn_resolutions=[8], resolution=32)
    decoder = ConvDecoder(
        ConvDecoderConfig(
            latent_channels=5, channels=4, channel_multipliers=[1, 2, 3], residual_blocks=2, groups=2
        ),
        WIDTH,
        32,
    )
    theirs = iter(reference.in_order())
    ours = (module for module in decoder.modules() if isinstance(module, nn.Conv2d | nn.GroupNorm))
    attention = {id(module.qkv) for module in decoder.modules() if isinstance(module, AttentionBlock)}
    for module in ours:
        parts = [next(theirs) for _ in range(3 if id(module) in attention else 1)]
        state = {name: torch.cat([part.state_dict()[name] for part in parts]) for name in ("weight", "bias")}
        module.load_state_dict(state)
    assert next(theirs, None) is None
    features = torch.randn(2, WIDTH, 8, 8)
    one, other = (features.clone().requires_grad_() for _ in range(2))
    expected, images = reference(one), decoder(other)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)
    for pixels in (expected, images):
        pixels.square().sum().backward()
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5)
    assert sum(isinstance(module, AttnBlock) for module in reference.modules()) == 3


@pytest.mark.parametrize(("width", "image_size"), [(1024, 256), (1152, 384)])
def test_the_default_is_the_published_decoder(width: int, image_size: int) -> None:
    """42M weights (QLIP's table); RQ-VAE's code makes as many for VILA-U's sizes."""
    with torch.device("meta"):
        decoder = ConvDecoder(ConvDecoderConfig(), width, image_size)
        reference = ReferenceDecoder(
            embed_dim=width,
            z_channels=256,
            ch=128,
            ch_mult=[1, 1, 2, 2, 4],
            num_res_blocks=2,
            attn_resolutions=[image_size // 16],
            resolution=image_size,
        )
    count = sum(weight.numel() for weight in decoder.parameters())
    assert count == sum(weight.numel() for weight in reference.parameters())
    assert count == pytest.approx(42e6, rel=0.02)


@pytest.mark.parametrize("side", [5, 9, 12])
def test_a_grid_that_is_not_the_latent_size_is_interpolated_to_it(side: int) -> None:
    """As VILA-U's 27x27 positions become 24x24."""
    decoder, features = conv(), torch.randn(2, WIDTH, side, side)
    resized = F.interpolate(features, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoder(features), decoder(resized))


def test_convolutions_keep_places() -> None:
    """Without attention a position's features reach the pixels around it, and no others far off."""
    decoder = conv(levels=2, attention=False)
    for module in decoder.modules():
        if isinstance(module, torch.nn.GroupNorm):  # its statistics are taken over all places
            module.forward = lambda x: x  # type: ignore[method-assign]
    features = torch.randn(1, WIDTH, 16, 16)
    moved = features.clone()
    moved[..., 2, 13] += 1
    changed = (decoder(moved) - decoder(features)).abs().sum(dim=(0, 1)) > 1e-6
    rows, columns = changed.nonzero().unbind(dim=-1)
    assert changed[5, 27]
    assert rows.max() < 26, "the lower part stays"
    assert columns.min() > 5, "the left part stays"


@pytest.mark.parametrize("grid", [(4, 4), (2, 8)])
def test_each_position_emits_its_own_patch(grid: tuple[int, int]) -> None:
    decoder = transformer(grid, layers=0)
    features = torch.randn(1, WIDTH, *grid)
    before = decoder(features)
    height, width = 32 // grid[0], 32 // grid[1]
    for row in range(grid[0]):
        for column in range(grid[1]):
            moved = features.clone()
            moved[..., row, column] += 1
            changed = (decoder(moved) - before).abs().sum(dim=(0, 1)) > 0
            patch = torch.zeros(32, 32, dtype=torch.bool)
            patch[row * height : (row + 1) * height, column * width : (column + 1) * width] = True
            assert torch.equal(changed, patch)


def test_a_patch_is_channels_rows_columns() -> None:
    decoder = transformer(layers=0)
    with torch.no_grad():
        decoder.output.weight.zero_()
        decoder.output.bias.copy_(torch.arange(3 * 8 * 8.0))
    images = decoder(torch.randn(1, WIDTH, 4, 4))
    assert torch.equal(images[0], torch.arange(3 * 8 * 8.0).view(3, 8, 8).tile(1, 4, 4))


def test_positions_attend_to_each_other() -> None:
    decoder = transformer(layers=2)
    features = torch.randn(1, WIDTH, 4, 4, requires_grad=True)
    decoder(features)[..., :8, :8].square().sum().backward()
    assert (features.grad.abs().sum(dim=(0, 1)) > 0).all()


def test_layers_start_with_weights_of_their_own() -> None:
    first, second = transformer(layers=2).layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            ConvDecoderConfig(channels=4, channel_multipliers=[1, 1, 1, 1], groups=2),
            "decoder.channel_multipliers has 4 levels, so the image size must divide by 8, but it is 36",
        ),
        (
            ConvDecoderConfig(channels=4, channel_multipliers=[1, 2], groups=8),
            "decoder.groups is 8, which does not divide the 4 channels",
        ),
        (
            TransformerDecoderConfig(width=8, layers=1, heads=2),
            "5x5 positions do not tile 36 pixels; use decoder.kind=conv",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_told_in_a_sentence(config: DecoderConfig, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_decoder(config, WIDTH, (5, 5), 36)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"decoder.width 8 is not a multiple of decoder.heads 3"):
        build_decoder(TransformerDecoderConfig(width=8, layers=1, heads=3), WIDTH, (4, 4), 32)


@pytest.mark.parametrize(
    "config", [ConvDecoderConfig(channels=4, channel_multipliers=[1, 2]), TransformerDecoderConfig(width=8)]
)
def test_a_configuration_survives_being_saved(config: DecoderConfig) -> None:
    assert decoder_config(asdict(config)) == config


def test_an_unknown_decoder_is_refused() -> None:
    with pytest.raises(UserError, match="decoder.kind is 'unet'; the decoders are conv, transformer"):
        decoder_config({"kind": "unet"})
