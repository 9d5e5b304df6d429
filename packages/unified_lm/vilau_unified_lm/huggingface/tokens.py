"""One stream of token ids for text and pictures.

    prompts (input_ids)   text ids, and at each visual position the id V: "a position, whose codes are in pixel_values"
    what is generated     text ids, and for each visual position D ids, V + d*K + code (`Vocabulary`)

Ids from V on mean nothing to the text tokenizer, which knows ids up to V - 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from vilau_common.errors import UserError
from vilau_unified_lm.document import Document, ImageSegment, TextSegment
from vilau_unified_lm.generation.request import Generated, TextPart, VideoPart
from vilau_unified_lm.vocabulary import Vocabulary

MODES = ("text", "image", "video", "interleaved")


def check_mode(mode: str) -> None:
    """Raises UserError unless it is one of MODES."""
    if mode not in MODES:
        raise UserError(f"generation_mode is {mode!r}; it is one of {', '.join(MODES)}")


def prompt_ids(document: Document, vocabulary: Vocabulary) -> list[int]:
    """A document as a prompt's stream."""
    ids: list[int] = []
    for segment in document.segments:
        if isinstance(segment, ImageSegment):
            ids += [vocabulary.text_size] * len(segment.codes)
        else:
            ids += segment.ids
    return ids


def supervised_places(document: Document) -> list[int]:
    """1 for each place of a document that is supervised, 0 for the others."""
    places: list[int] = []
    for segment in document.segments:
        length = len(segment.ids if isinstance(segment, TextSegment) else segment.codes)
        places += [int(segment.supervised)] * length
    return places


def left_padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """int64 [B, L], each row at the right end."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[padding] * (longest - len(row)) + list(row) for row in rows])


def generated_ids(generated: Generated, vocabulary: Vocabulary) -> list[int]:
    """What the engine gave as a stream; around pictures stand the marks, which it leaves out."""
    ids: list[int] = []
    for part in generated.parts:
        if isinstance(part, TextPart):
            ids += part.ids
            continue
        visual = vocabulary.visual_ids(part.codes).flatten().tolist()
        video = isinstance(part, VideoPart)
        ids.append(vocabulary.video_start if video else vocabulary.image_start)
        ids += visual
        ids.append(vocabulary.video_end if video else vocabulary.image_end)
    return ids


def codes_of(ids: Tensor, vocabulary: Vocabulary, grid: tuple[int, int]) -> Tensor:
    """Visual ids int64 [..., F*h*w*D] of whole pictures -> codes int64 [..., F, h, w, D].

    Raises UserError for ids that are no whole pictures.
    """
    height, width = grid
    size = height * width * vocabulary.depth
    if ids.shape[-1] % size or not ids.shape[-1]:
        raise UserError(f"a picture is {size} visual ids, and {ids.shape[-1]} are no whole pictures")
    codes = vocabulary.codes(ids.unflatten(-1, (-1, height, width, vocabulary.depth)))
    if bool(((codes < 0) | (codes >= vocabulary.codebook_size)).any()):
        raise UserError("these ids are no visual ones: they are those of generation_mode image or video")
    return codes


def runs(ids: Sequence[int], text_size: int) -> Iterator[tuple[bool, list[int]]]:
    """(whether visual, ids) by turns."""
    for visual, run in groupby(ids, key=lambda id_: id_ >= text_size):
        yield visual, list(run)
