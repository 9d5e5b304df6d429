"""Which tensors of an official tower (`rqvaesiglip.…`) each of ours is made of.

Both keep SigLIP's own names. The decoder is RQ-VAE's, whose levels are counted from full resolution and whose
attention has a convolution each for query, key and value. Each codebook has one row more than codes, the padding of
its embedding, and the moving averages of van den Oord et al. beside it.

Left over in the official file are the parts that a trained tower is no longer asked for: SigLIP's text model, with
which it was aligned, and the scale of that alignment.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from torch import nn

from vilau_common.tensor_links import Link, concatenated, renamed, stacked, stacked_without_last_row
from vilau_vision_tower.decoder import AttentionBlock, ConvDecoder, ResidualBlock, UpSample
from vilau_vision_tower.quantizer import ResidualQuantizer
from vilau_vision_tower.tower import VisionTower

PREFIX = "rqvaesiglip."
# Ours alone: whether the codebooks hold data. Those of a checkpoint do.
STARTED = "quantizer.started"
LEFT_OVER = re.compile(
    r"rqvaesiglip\.(siglip_model\.text_model\..+|(siglip_model\.)?logit_(scale|bias)|.+\.position_ids)"
)
CODEBOOK = re.compile(r"rqvaesiglip\.quantizer\.codebooks\.(\d+)\.(weight|embed_ema|cluster_size_ema)")


def tower_links(tower: VisionTower, present: Collection[str]) -> list[Link]:
    """Links of all of the tower's tensors but `STARTED`. The tower may lie on the meta device.

    present: the names in the official file. All depths share one codebook where they say so: the file then holds it
    under one depth's name (safetensors), or under those of all.
    """
    links = [
        renamed(f"encoder.model.{name}", f"{PREFIX}siglip_model.vision_model.{name}")
        for name in tower.encoder.model.state_dict()
    ]
    links += codebook_links(tower, present)
    assert isinstance(tower.decoder, ConvDecoder)
    return [*links, *decoder_links(tower.decoder)]


def codebook_links(tower: VisionTower, present: Collection[str]) -> list[Link]:
    """Codebooks and their moving averages."""
    depths = _stored_depths(tower, present)
    return [
        stacked_without_last_row("quantizer.codebooks", [_codebook(depth, "weight") for depth in depths]),
        stacked("quantizer.sums", [_codebook(depth, "embed_ema") for depth in depths]),
        stacked("quantizer.counts", [_codebook(depth, "cluster_size_ema") for depth in depths]),
    ]


def decoder_links(decoder: ConvDecoder) -> list[Link]:
    """The pixel decoder and the 1x1 convolution before it."""
    theirs = f"{PREFIX}decoder"
    links = [
        *_same("decoder.latent", f"{PREFIX}post_quant_conv"),
        *_same("decoder.input", f"{theirs}.conv_in"),
        *_same("decoder.norm", f"{theirs}.norm_out"),
        *_same("decoder.output", f"{theirs}.conv_out"),
        *_block("decoder.middle.0", f"{theirs}.mid.block_1", decoder.middle[0]),
        *_block("decoder.middle.1", f"{theirs}.mid.attn_1", decoder.middle[1]),
        *_block("decoder.middle.2", f"{theirs}.mid.block_2", decoder.middle[2]),
    ]
    level, blocks, attentions = len(decoder.config.channel_multipliers) - 1, 0, 0
    for index, module in enumerate(decoder.up):
        if isinstance(module, UpSample):
            name = "upsample"
        elif isinstance(module, AttentionBlock):
            name, attentions = f"attn.{attentions}", attentions + 1
        else:
            name, blocks = f"block.{blocks}", blocks + 1
        links += _block(f"decoder.up.{index}", f"{theirs}.up.{level}.{name}", module)
        if isinstance(module, UpSample):
            level, blocks, attentions = level - 1, 0, 0
    return links


def canonical_name(name: str, tower: VisionTower, present: Collection[str]) -> str:
    """The name in `tower_links` of the tensor `name`: another depth's, where all share one codebook."""
    match = CODEBOOK.fullmatch(name)
    if match is None or _books(tower) > 1:
        return name
    return _codebook(_stored_depths(tower, present)[0], match[2])


def has_padding_row(name: str) -> bool:
    """Whether the official tensor's last row is its embedding's padding, which ours does not hold."""
    match = CODEBOOK.fullmatch(name)
    return match is not None and match[2] == "weight"


def is_left_over(name: str) -> bool:
    """Whether the official file may hold this tensor though the tower has no use for it."""
    return LEFT_OVER.fullmatch(name) is not None


def _books(tower: VisionTower) -> int:
    """How many codebooks there are: one for each depth, or one."""
    assert isinstance(tower.quantizer, ResidualQuantizer)
    return len(tower.quantizer.codebooks)


def _stored_depths(tower: VisionTower, present: Collection[str]) -> list[int]:
    """The depths whose codebooks are read: all, or the first one stored of a codebook that all share."""
    depths = list(range(tower.depth))
    if _books(tower) > 1:
        return depths
    return [depth for depth in depths if _codebook(depth, "weight") in present][:1] or [0]


def _codebook(depth: int, part: str) -> str:
    return f"{PREFIX}quantizer.codebooks.{depth}.{part}"


def _block(ours: str, theirs: str, module: nn.Module) -> Iterator[Link]:
    if isinstance(module, UpSample):
        yield from _same(f"{ours}.conv", f"{theirs}.conv")
    elif isinstance(module, AttentionBlock):
        yield from _same(f"{ours}.norm", f"{theirs}.norm")
        for part in ("weight", "bias"):
            yield concatenated(f"{ours}.qkv.{part}", [f"{theirs}.{which}.{part}" for which in "qkv"])
        yield from _same(f"{ours}.out", f"{theirs}.proj_out")
    else:
        assert isinstance(module, ResidualBlock)
        for place, name in (("0", "norm1"), ("2", "conv1"), ("3", "norm2"), ("5", "conv2")):
            yield from _same(f"{ours}.body.{place}", f"{theirs}.{name}")
        if not isinstance(module.skip, nn.Identity):
            yield from _same(f"{ours}.skip", f"{theirs}.nin_shortcut")


def _same(ours: str, theirs: str) -> Iterator[Link]:
    for part in ("weight", "bias"):
        yield renamed(f"{ours}.{part}", f"{theirs}.{part}")
