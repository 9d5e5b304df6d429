"""The one place where a world's configuration becomes a world."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vilau_common.data.shards import dataset_info
from vilau_common.data.worlds.base import World, WorldConfig
from vilau_common.data.worlds.easy_vqa.config import EasyVqaConfig
from vilau_common.data.worlds.easy_vqa.world import EasyVqaWorld
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.world import ScenesWorld
from vilau_common.errors import UserError

WORLD_CONFIGS: dict[str, type[WorldConfig]] = {"scenes": ScenesConfig, "easy_vqa": EasyVqaConfig}


def build_world(config: WorldConfig) -> World:
    """The world that the configuration's class stands for. Raises UserError for settings out of range."""
    if isinstance(config, ScenesConfig):
        return ScenesWorld(config)
    if isinstance(config, EasyVqaConfig):
        return EasyVqaWorld(config)
    raise TypeError(f"no world is configured by {type(config).__name__}")


def world_of(directory: Path) -> World:
    """The world that the prepared split in `directory` was made from. Raises UserError for any other data set."""
    info = dataset_info(directory).info
    config = WORLD_CONFIGS.get(str(info.get("world")))
    if config is None:
        raise UserError(
            f"{directory} was not made from a built-in world ({', '.join(sorted(WORLD_CONFIGS))}), so no verifier "
            "can read its pictures"
        )
    known = {field.name for field in dataclasses.fields(config)}
    return build_world(config(**{name: value for name, value in info["settings"].items() if name in known}))
