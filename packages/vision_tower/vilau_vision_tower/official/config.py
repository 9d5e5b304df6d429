"""The configuration of an official tower (`rqvaesiglip` in vision_tower/config.json) -> ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vilau_common.errors import UserError
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.decoder import ConvDecoderConfig
from vilau_vision_tower.official.siglip import siglip_vision_config
from vilau_vision_tower.quantizer import QuantizerConfig

GROUPS = 32  # of its group norms, which no configuration tells

REQUIRED = ("embed_dim", "n_embed", "latent_shape", "code_shape", "shared_codebook", "ddconfig")
DECODER_REQUIRED = ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution", "z_channels")


def tower_config(values: Mapping[str, Any], checkpoint: Path, source: str) -> VisionTowerConfig:
    """values: the `rqvaesiglip` of `source`, a file in the directory `checkpoint`.

    Raises UserError for a missing or impossible value, naming it.
    """
    _require(values, REQUIRED, f"{source}: rqvaesiglip")
    vision = siglip_vision_config(
        str(values.get("pretrained_model") or "siglip-large-patch16-256"),
        checkpoint,
        f"{source}: rqvaesiglip.pretrained_model",
    )
    side = vision.image_size // vision.patch_size
    depth = _as_list(values["code_shape"])[-1]
    wanted = {
        "code_shape": [side, side, depth],
        "latent_shape": [side, side, vision.hidden_size],
        "embed_dim": vision.hidden_size,
    }
    for key, value in wanted.items():
        if _as_list(values[key]) != _as_list(value):
            raise UserError(
                f"{source}: rqvaesiglip.{key} is {values[key]}, but its SigLIP of {vision.image_size} pixels in "
                f"patches of {vision.patch_size}, {vision.hidden_size} wide, needs {value}"
            )
    return VisionTowerConfig(
        vision_config=vision.to_dict(),
        quantizer=asdict(_quantizer(values, depth, source)),
        decoder=asdict(_decoder(values, side, source)),
    )


def _quantizer(values: Mapping[str, Any], depth: int, source: str) -> QuantizerConfig:
    # RQ-VAE's code lets each depth have a size and a decay of its own; the released towers have one for all.
    single = {}
    for key, default in (("n_embed", None), ("decay", 0.99)):
        given = set(_as_list(values.get(key, default)))
        if len(given) != 1:
            raise UserError(f"{source}: rqvaesiglip.{key} is {values[key]}; all depths must have the same")
        (single[key],) = given
    config = QuantizerConfig(
        codebook_size=single["n_embed"],
        depth=depth,
        shared_codebook=bool(values["shared_codebook"]),
        ema_decay=single["decay"],
        # It restarts codes by another rule; ours holds where training goes on.
        restart_below=QuantizerConfig.restart_below if values.get("restart_unused_codes", True) else 0.0,
    )
    try:
        config.validate()
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return config


def _decoder(values: Mapping[str, Any], side: int, source: str) -> ConvDecoderConfig:
    decoder = values["ddconfig"]
    _require(decoder, DECODER_REQUIRED, f"{source}: rqvaesiglip.ddconfig")
    if decoder.get("out_ch", 3) != 3:
        raise UserError(
            f"{source}: rqvaesiglip.ddconfig.out_ch is {decoder['out_ch']}; pictures have 3 channels"
        )
    levels = range(len(decoder["ch_mult"]))
    # The official code counts resolutions of its nominal image up from the latent one.
    lowest = decoder["resolution"] // 2 ** levels[-1]
    sides = [lowest * 2 ** (levels[-1] - level) for level in levels]
    latent = values.get("decoder_latent_shape") or [side, side]
    if len(set(latent)) != 1:
        raise UserError(f"{source}: rqvaesiglip.decoder_latent_shape is {latent}; pictures are square")
    return ConvDecoderConfig(
        latent_channels=decoder["z_channels"],
        channels=decoder["ch"],
        channel_multipliers=list(decoder["ch_mult"]),
        residual_blocks=decoder["num_res_blocks"] + 1,
        attention_levels=[level for level in levels if sides[level] in decoder["attn_resolutions"]],
        groups=GROUPS,
        latent_size=latent[0],
    )


def _require(values: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in keys:
        if values.get(key) is None:
            raise UserError(f"{where} has no {key}")


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
