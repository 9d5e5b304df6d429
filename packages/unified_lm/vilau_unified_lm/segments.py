"""What a document is made of: segments of text ids and image codes, each supervised or not.

A document is what one training sample or prompt says; `packing` makes mixed sequences of documents. A video is
consecutive image segments, one a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TextSegment:
    ids: tuple[int, ...]
    supervised: bool
    branch: int = 0  # 0: the trunk, which all that follows sees; others: seen by their own branch alone


@dataclass(frozen=True, eq=False)
class ImageSegment:
    codes: Codes  # int64 [T, D], row-major over the grid
    supervised: bool
    branch: int = 0


Segment = TextSegment | ImageSegment


@dataclass(frozen=True, eq=False)
class Document:
    segments: tuple[Segment, ...]  # the trunk's, then each branch's

    def __len__(self) -> int:
        """Positions in the mixed sequence."""
        return sum(len(s.ids) if isinstance(s, TextSegment) else len(s.codes) for s in self.segments)


def image(codes: Codes, supervised: bool) -> ImageSegment:
    """codes int64 [h, w, D] or [T, D] as a segment."""
    return ImageSegment(codes.reshape(-1, codes.shape[-1]), supervised)


def largest_unit(document: Document) -> int:
    """Places that the largest image takes with all that cannot be parted from it; 0 without images."""
    opening, *rest = document.segments
    images = [len(Document((opening, *unit))) for unit in _units(rest) if len(unit) > 1]
    return max(images, default=0)


def split_document(document: Document, length: int) -> list[Document]:
    """A document of text, or of text and images, as several of at most `length` places, in its order.

    Each begins with the document's first segment. Text is cut anywhere; an image, which must fit (`largest_unit`),
    stays whole with what stands around it. A part without anything supervised is left out, and one of </s> alone.
    """
    opening, *rest = document.segments
    full = length - len(Document((opening,)))
    parts: list[list[Segment]] = []
    room = 0
    for unit in _units(rest):
        size = len(Document(unit))
        if len(unit) > 1:
            assert size <= full, "an image is longer than a row"
            if size > room:
                parts.append([])
                room = full
            parts[-1] += unit
            room -= size
            continue
        (text,) = unit
        assert isinstance(text, TextSegment)
        ids = text.ids
        while ids:
            if not room:
                parts.append([])
                room = full
            parts[-1].append(TextSegment(ids[:room], text.supervised))
            room, ids = room - len(ids[:room]), ids[room:]
    *whole, last = parts
    if len(Document(tuple(last))) > 1:
        whole.append(last)
    return [Document((opening, *part)) for part in whole if any(segment.supervised for segment in part)]


def _units(segments: list[Segment]) -> list[tuple[Segment, ...]]:
    """What must not be torn apart: text by itself, images with the segments before and after them."""
    units: list[tuple[Segment, ...]] = []
    index = 0
    while index < len(segments):
        end = index + 1
        while end < len(segments) and isinstance(segments[end], ImageSegment):
            end += 1
        end += end > index + 1  # what closes the images
        units.append(tuple(segments[index:end]))
        index = end
    return units
