"""Mixed ids: one sequence of int64 for text and pictures, which the processor and `generate` exchange.

In a prompt a visual position is one id, `Vocabulary.text_size`, and its codes are those of the pictures given beside
it. In what is generated it is its D visual tokens, depth by depth (see `Vocabulary`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vilau_common.errors import UserError
from vilau_unified_lm.generation.request import Generated, TextPart, VideoPart
from vilau_unified_lm.segments import Codes, Document, ImageSegment, Segment, TextSegment, image
from vilau_unified_lm.vocabulary import Vocabulary


def prompt_ids(document: Document, vocabulary: Vocabulary) -> list[int]:
    """The ids of a prompt; its codes are left out."""
    ids: list[int] = []
    for segment in document.segments:
        if isinstance(segment, ImageSegment):
            ids += [vocabulary.text_size] * len(segment.codes)
        else:
            ids += segment.ids
    return ids


def prompt_document(ids: Sequence[int], pictures: Sequence[Codes], vocabulary: Vocabulary) -> Document:
    """The prompt with these ids; pictures: the codes of its images and frames in order, each int64 [h, w, D].

    Raises UserError where they do not fill its visual positions, or where an id is none of a text.
    """
    places = sum(id_ == vocabulary.text_size for id_ in ids)
    filled = sum(codes.shape[0] * codes.shape[1] for codes in pictures)
    if places != filled:
        raise UserError(
            f"a prompt has {places} visual positions, but the pictures given with it fill {filled}; pass all of what "
            "the processor returned to the model"
        )
    wrong = next((id_ for id_ in ids if not 0 <= id_ <= vocabulary.text_size), None)
    if wrong is not None:
        raise UserError(
            f"a prompt holds the id {wrong}; text ids are below {vocabulary.text_size}, and a picture comes as "
            "pixel_values, not as its visual tokens"
        )
    segments: list[Segment] = []
    waiting = iter(pictures)
    start = 0
    while start < len(ids):
        if ids[start] == vocabulary.text_size:
            picture = image(next(waiting), supervised=False)
            segments.append(picture)
            start += len(picture.codes)
            continue
        end = start
        while end < len(ids) and ids[end] != vocabulary.text_size:
            end += 1
        segments.append(TextSegment(tuple(ids[start:end]), supervised=False))
        start = end
    return Document(tuple(segments))


def generated_ids(generated: Generated, vocabulary: Vocabulary) -> Tensor:
    """What was generated as ids int64 [n], each picture as its visual tokens between its marks."""
    parts: list[Tensor] = []
    for part in generated.parts:
        if isinstance(part, TextPart):
            parts.append(torch.tensor(part.ids, dtype=torch.int64))
            continue
        video = isinstance(part, VideoPart)
        start, end = (
            (vocabulary.video_start, vocabulary.video_end)
            if video
            else (vocabulary.image_start, vocabulary.image_end)
        )
        tokens = vocabulary.visual_ids(part.codes.cpu()).flatten()
        parts += [torch.tensor([start]), tokens, torch.tensor([end])]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def parts_of_ids(ids: Tensor, vocabulary: Vocabulary, grid: tuple[int, int]) -> list[Tensor]:
    """The inverse of `generated_ids`: texts int64 [n], images as codes int64 [h, w, D], videos [frames, h, w, D].

    Marks and padding at the end are left out. Raises UserError for a picture that is cut off.
    """
    visual = ids >= vocabulary.text_size
    parts: list[Tensor] = []
    start = 0
    while start < len(ids):
        end = start + 1
        while end < len(ids) and visual[end] == visual[start]:
            end += 1
        run = ids[start:end]
        if visual[start]:
            video = start > 0 and int(ids[start - 1]) == vocabulary.video_start
            codes = codes_of_ids(run, vocabulary, grid)
            parts.append(codes if video else codes[0])
        else:
            leave = torch.tensor([*vocabulary.special_ids, vocabulary.pad])
            if len(text := run[~torch.isin(run, leave)]):
                parts.append(text)
        start = end
    return parts


def codes_of_ids(ids: Tensor, vocabulary: Vocabulary, grid: tuple[int, int]) -> Tensor:
    """Visual tokens int64 [..., n * h * w * D] -> codes int64 [..., n, h, w, D].

    Raises UserError where they are no whole pictures, or are not the visual tokens of their depths.
    """
    one = grid[0] * grid[1] * vocabulary.depth
    if ids.shape[-1] == 0 or ids.shape[-1] % one:
        raise UserError(
            f"a picture has {one} visual tokens, but {ids.shape[-1]} are given: part of one is missing"
        )
    codes = vocabulary.codes(ids.unflatten(-1, (-1, *grid, vocabulary.depth)))
    if bool(((codes < 0) | (codes >= vocabulary.codebook_size)).any()):
        raise UserError(
            "these ids are not the visual tokens of their depths; give what generate returned, unchanged"
        )
    return codes
