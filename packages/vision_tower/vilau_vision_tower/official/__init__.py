"""The vision tower as the official VILA-U code stores it (github.com/mit-han-lab/vila-u, `RQVAESiglipModel`).

siglip.py   the sizes of the SigLIPs that the released towers are built on
config.py   its configuration -> ours
links.py    which of its tensors each of ours is made of
"""

from vilau_vision_tower.official.config import tower_config
from vilau_vision_tower.official.links import (
    PREFIX,
    STARTED,
    canonical_name,
    has_padding_row,
    is_left_over,
    tower_links,
)

__all__ = [
    "PREFIX",
    "STARTED",
    "canonical_name",
    "has_padding_row",
    "is_left_over",
    "tower_config",
    "tower_links",
]
