"""The one place where a world's configuration becomes a world."""

from __future__ import annotations

from vilau_common.data.worlds.base import World, WorldConfig
from vilau_common.data.worlds.easy_vqa.config import EasyVqaConfig
from vilau_common.data.worlds.easy_vqa.world import EasyVqaWorld
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.world import ScenesWorld


def build_world(config: WorldConfig) -> World:
    """The world that the configuration's class stands for. Raises UserError for settings out of range."""
    if isinstance(config, ScenesConfig):
        return ScenesWorld(config)
    if isinstance(config, EasyVqaConfig):
        return EasyVqaWorld(config)
    raise TypeError(f"no world is configured by {type(config).__name__}")
