"""What the engine is asked for, what it answers, and what it tells on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from vilau_unified_lm.document import Document


class Begin(Enum):
    """What comes first after a prompt."""

    TEXT = "text"
    IMAGE = "image"  # the prompt ends at <image_start>
    VIDEO = "video"  # the prompt ends at <video_start>


class Finish(Enum):
    """Why a sample ended."""

    END = "end"  # the model wrote a closing token
    STOP = "stop"  # the caller's condition held
    LENGTH = "length"  # so many positions or text tokens as were asked for
    DRAWN = "drawn"  # its picture is complete, and there was no room for more


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One sample to generate.

    negative: what guidance leads away from: a blank prompt, or one that says what should not be seen; it ends at an
    opening mark. None: only without guidance, or where nothing is drawn.
    positions: generate at most so many: text tokens, marks and visual positions. tokens: of these at most so many of
    text. frames: of each video; the model opens a video, but does not say when it ends.
    """

    prompt: Document
    negative: Document | None = None
    begin: Begin = Begin.TEXT
    seed: int = 0
    positions: int
    tokens: int | None = None
    frames: int = 8


@dataclass
class TextPart:
    ids: list[int]  # without marks and without the closing token


@dataclass
class ImagePart:
    codes: Tensor  # int64 [h, w, D]


@dataclass
class VideoPart:
    codes: Tensor  # int64 [frames, h, w, D]


Part = TextPart | ImagePart | VideoPart


@dataclass
class Generated:
    parts: list[Part] = field(default_factory=list)  # in the order of generation; no two texts in a row
    finish: Finish = Finish.LENGTH


@dataclass(frozen=True)
class TextEvent:
    """A text token more."""

    sample: int  # index of the request
    ids: list[int]  # of this text so far, the new token last


@dataclass(frozen=True)
class PictureEvent:
    """A visual position more of an image or a video."""

    sample: int  # index of the request
    number: int  # of this sample's images and videos, from 0
    codes: Tensor  # int64 [t, D], what is drawn of it so far, row-major, frame by frame; stays as it is
    positions: int  # of the whole


Event = TextEvent | PictureEvent
