"""The configurations of an official checkpoint -> ours."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from transformers import LlamaConfig

from vilau_common.errors import UserError
from vilau_common.pictures import FITS
from vilau_unified_lm.config import DepthConfig, UnifiedLMConfig
from vilau_unified_lm.convert.layout import LLM, PROJECTOR, TOWER, OfficialCheckpoint
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.official import tower_config
from vilau_vision_tower.quantizer import QuantizerConfig

CONVERSATION = "vicuna_v1"  # of both released models; no file says so
FRAMES = 8
DEPTH_DROPOUT = 0.1  # resid_pdrop, a default of the official code
MLP = re.compile(r"mlp(\d+)x_gelu")


def unified_config(checkpoint: OfficialCheckpoint) -> UnifiedLMConfig:
    """Raises UserError, naming file and key, for what ours cannot be or what does not fit together."""
    text = LlamaConfig.from_dict(checkpoint.parts[LLM])
    source = checkpoint.file(TOWER)
    values = checkpoint.parts[TOWER]
    for key in ("rqvaesiglip", "rqtransformer"):
        if not isinstance(values.get(key), dict):
            raise UserError(f"{source} has no {key}")
    tower = tower_config(values["rqvaesiglip"], checkpoint.directory, str(source))
    depth = _depth_config(values["rqtransformer"], text, tower, str(source))
    fit = checkpoint.config.get("image_aspect_ratio") or "resize"
    if fit not in FITS or fit == "crop":
        raise UserError(
            f"{checkpoint.directory / 'config.json'}: image_aspect_ratio is {fit!r}; it is 'resize' or 'pad'"
        )
    return UnifiedLMConfig(
        text_config=text,
        vision_config=tower,
        depth=asdict(depth),
        projector_layers=projector_layers(checkpoint),
        conversation=CONVERSATION,
        image_fit=fit,
        video_frames=int(checkpoint.config.get("num_video_frames") or FRAMES),
        dtype=_stored_dtype(checkpoint),
    )


def _stored_dtype(checkpoint: OfficialCheckpoint) -> str | None:
    """The dtype of the LM's weights, as configurations name it."""
    first = next((entry.dtype for entry in checkpoint.weights[LLM].values()), None)
    return None if first is None else str(first).removeprefix("torch.")


def projector_layers(checkpoint: OfficialCheckpoint) -> int:
    """Linear layers of the projector: of `linear` 1, of `mlp2x_gelu` 2, of `identity` none."""
    kind = checkpoint.parts[PROJECTOR].get("mm_projector_type")
    match = MLP.fullmatch(kind) if isinstance(kind, str) else None
    layers = int(match[1]) if match else {"identity": 0, "linear": 1}.get(str(kind))
    if layers is None or (match and layers == 0):
        raise UserError(
            f"{checkpoint.file(PROJECTOR)}: mm_projector_type is {kind!r}; known are identity, linear and mlp2x_gelu "
            "(or another number of layers)"
        )
    return layers


def _depth_config(
    values: dict[str, Any], text: LlamaConfig, tower: VisionTowerConfig, source: str
) -> DepthConfig:
    quantizer, encoder = tower.quantizer_config, tower.encoder_config
    assert isinstance(quantizer, QuantizerConfig)
    try:
        depth = values["block_size"][2]
        config = DepthConfig(
            width=values["embed_dim"],
            layers=values["head"]["n_layer"],
            heads=values["head"]["block"]["n_head"],
            dropout=DEPTH_DROPOUT,
        )
        wanted = {
            "block_size[2]": (depth, quantizer.depth, "the codes of a position"),
            "vocab_size": (values["vocab_size"], quantizer.codebook_size, "the codes of a codebook"),
            "input_embed_dim_1": (values["input_embed_dim_1"], encoder.hidden_size, "the tower's width"),
            "input_embed_dim_2": (values["input_embed_dim_2"], text.hidden_size, "the LM's width"),
        }
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{source}: rqtransformer has no {error}") from None
    for key, (value, right, what) in wanted.items():
        if value != right:
            raise UserError(f"{source}: rqtransformer.{key} is {value}, but {what} are {right}")
    try:
        config.validate()
    except UserError as error:
        raise UserError(f"{source}: rqtransformer: {error}") from None
    return config
