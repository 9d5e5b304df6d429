"""The one place where a source's configuration becomes a source; and all kinds of `vilau prepare source=…`."""

from __future__ import annotations

from vilau_common.data.sources.base import PicturesConfig, PictureSource, SourceConfig
from vilau_common.data.sources.image_folder import ImageFolder, ImageFolderConfig
from vilau_common.data.sources.openmoji.source import OpenMoji, OpenMojiConfig
from vilau_common.data.sources.webdataset import WebDatasetConfig, WebDatasetSource
from vilau_common.data.worlds.registry import WORLD_CONFIGS

SOURCE_CONFIGS: dict[str, type[SourceConfig]] = {
    **WORLD_CONFIGS,
    "image_folder": ImageFolderConfig,
    "webdataset": WebDatasetConfig,
    "openmoji": OpenMojiConfig,
}


def build_source(config: PicturesConfig) -> PictureSource:
    """The source that the configuration's class stands for. Raises UserError for settings that cannot work."""
    if isinstance(config, ImageFolderConfig):
        return ImageFolder(config)
    if isinstance(config, WebDatasetConfig):
        return WebDatasetSource(config)
    if isinstance(config, OpenMojiConfig):
        return OpenMoji(config)
    raise TypeError(f"no source is configured by {type(config).__name__}")
