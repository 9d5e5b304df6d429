"""Quantisers: features -> D codes a position, and back. `residual` is the paper's; `library` holds the alternatives."""

from vilau_vision_tower.quantizer.base import AnyQuantizerConfig, Quantizer, QuantizerOutput
from vilau_vision_tower.quantizer.kinds import QUANTIZER_CONFIGS, build_quantizer, quantizer_config
from vilau_vision_tower.quantizer.residual import QuantizerConfig, ResidualQuantizer
from vilau_vision_tower.quantizer.search import nearest_code

__all__ = [
    "QUANTIZER_CONFIGS",
    "AnyQuantizerConfig",
    "Quantizer",
    "QuantizerConfig",
    "QuantizerOutput",
    "ResidualQuantizer",
    "build_quantizer",
    "nearest_code",
    "quantizer_config",
]
