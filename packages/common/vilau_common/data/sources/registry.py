"""The one place where a source's configuration becomes a source; and all kinds of `vilau prepare source=…`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vilau_common.data.sources.base import SamplesConfig, SampleSource, SourceConfig
from vilau_common.data.sources.conversations import Conversations, ConversationsConfig
from vilau_common.data.sources.edits import Edits, EditsConfig
from vilau_common.data.sources.image_folder import ImageFolder, ImageFolderConfig
from vilau_common.data.sources.interleaved import Interleaved, InterleavedConfig
from vilau_common.data.sources.openmoji.source import OpenMoji, OpenMojiConfig
from vilau_common.data.sources.text import Text, TextConfig
from vilau_common.data.sources.videos import Videos, VideosConfig
from vilau_common.data.sources.webdataset import WebDatasetConfig, WebDatasetSource
from vilau_common.data.worlds.registry import WORLD_CONFIGS

SOURCE_CONFIGS: dict[str, type[SourceConfig]] = {
    **WORLD_CONFIGS,
    "image_folder": ImageFolderConfig,
    "webdataset": WebDatasetConfig,
    "openmoji": OpenMojiConfig,
    "conversations": ConversationsConfig,
    "interleaved": InterleavedConfig,
    "videos": VideosConfig,
    "text": TextConfig,
    "edits": EditsConfig,
}


def build_source(config: SamplesConfig) -> SampleSource:
    """The source that the configuration's class stands for. Raises UserError for settings that cannot work."""
    kinds: dict[type[SamplesConfig], Callable[[Any], SampleSource]] = {
        ImageFolderConfig: ImageFolder,
        WebDatasetConfig: WebDatasetSource,
        OpenMojiConfig: OpenMoji,
        ConversationsConfig: Conversations,
        InterleavedConfig: Interleaved,
        VideosConfig: Videos,
        TextConfig: Text,
        EditsConfig: Edits,
    }
    return kinds[type(config)](config)
