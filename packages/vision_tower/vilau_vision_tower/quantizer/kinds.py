"""The kinds of quantisers, and the one place where a configuration becomes a quantiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vilau_common.errors import UserError
from vilau_vision_tower.quantizer.base import AnyQuantizerConfig, Quantizer
from vilau_vision_tower.quantizer.codebooks import EmaResidualQuantizer, GradientResidualQuantizer
from vilau_vision_tower.quantizer.library import (
    FsqConfig,
    FsqQuantizer,
    LfqConfig,
    LfqQuantizer,
    SimVqConfig,
    SimVqQuantizer,
)
from vilau_vision_tower.quantizer.residual import QuantizerConfig, ResidualQuantizer

QUANTIZER_CONFIGS: dict[str, type[AnyQuantizerConfig]] = {
    "rq": QuantizerConfig,
    "fsq": FsqConfig,
    "lfq": LfqConfig,
    "simvq": SimVqConfig,
}


def quantizer_config(values: Mapping[str, Any]) -> AnyQuantizerConfig:
    """A typed quantiser configuration from the plain dict that a saved tower carries; without a kind it is rq's."""
    kind = values.get("kind", "rq")
    if kind not in QUANTIZER_CONFIGS:
        raise UserError(f"quantizer.kind is {kind!r}; the quantisers are {', '.join(QUANTIZER_CONFIGS)}")
    return QUANTIZER_CONFIGS[kind](**values)


def build_quantizer(config: AnyQuantizerConfig, width: int) -> Quantizer:
    """The quantiser that `config` describes, for features of `width`. Raises UserError for a value out of range."""
    if isinstance(config, QuantizerConfig):
        return residual_quantizer(config, width)
    if isinstance(config, FsqConfig):
        return FsqQuantizer(config, width)
    if isinstance(config, LfqConfig):
        return LfqQuantizer(config, width)
    assert isinstance(config, SimVqConfig)
    return SimVqQuantizer(config, width)


def residual_quantizer(config: QuantizerConfig, width: int) -> ResidualQuantizer:
    """The residual quantiser whose codebooks follow the data as `config` says."""
    config.validate()
    kinds = {"ema": EmaResidualQuantizer, "gradient": GradientResidualQuantizer}
    return kinds[config.codebook_update](config, width)
