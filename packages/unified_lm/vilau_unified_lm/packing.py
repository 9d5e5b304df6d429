"""Packing: documents become rows of a mixed sequence, several to a row, none seeing another.

Rows are filled by first-fit decreasing over a buffer of documents. Position ids restart with each document, and with
each branch where the trunk ended; document and branch ids build the attention mask: causal, within the document, and
of its branches to one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vilau_unified_lm.document import Document, ImageSegment

IGNORE = -100


@dataclass
class MixedSequence:
    token_ids: Tensor  # int64 [B, L], text ids; 0 at visual positions and padding
    visual_mask: Tensor  # bool [B, L], True at visual positions
    codes: Tensor  # int64 [N, D], of the True places of visual_mask in row-major order
    grid_index: Tensor  # int64 [N], row-major place of each visual position within its image
    position_ids: Tensor  # int64 [B, L], from 0 in each document; branches go on where its trunk ends
    document_ids: Tensor  # int64 [B, L], from 1 in each row; 0 is padding
    branch_ids: Tensor  # int64 [B, L], from 1 in each document; 0 is its trunk
    text_targets: Tensor  # int64 [B, L], the text id that follows each place, IGNORE where none is supervised
    visual_targets: (
        Tensor  # int64 [B, L], the row of `codes` that follows each place, IGNORE where none is supervised
    )

    def to(self, device: torch.device) -> MixedSequence:
        """The same sequence on another device."""
        return MixedSequence(**{name: value.to(device) for name, value in vars(self).items()})

    def pin_memory(self) -> MixedSequence:
        """The same sequence in pinned memory; the loader calls it where there is an accelerator."""
        return MixedSequence(**{name: value.pin_memory() for name, value in vars(self).items()})


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indices whose lengths sum to at most `capacity`; the longest first, each into the first bin it fits."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for which, left in enumerate(room):
            if lengths[index] <= left:
                bins[which].append(index)
                room[which] -= lengths[index]
                break
        else:
            bins.append([index])
            room.append(capacity - lengths[index])
    return bins


def pack(rows: Sequence[Sequence[Document]], length: int, depth: int) -> MixedSequence:
    """Rows of documents -> a mixed sequence of `length` places a row, padded at the end.

    The documents of a row must fit into it; depth: D, for batches without any picture.
    """
    shape = (len(rows), length)
    token_ids, position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    document_ids, branch_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    visual_mask = np.zeros(shape, bool)
    text_targets, visual_targets = np.full(shape, IGNORE, np.int64), np.full(shape, IGNORE, np.int64)
    codes, grid_index, visual_count = [np.zeros((0, depth), np.int64)], [np.zeros(0, np.int64)], 0
    for row, documents in enumerate(rows):
        place = 0
        for number, document in enumerate(documents, start=1):
            start, trunk, position, branch = place, 0, 0, 0
            for segment in document.segments:
                size = len(segment.codes) if isinstance(segment, ImageSegment) else len(segment.ids)
                if not size:
                    continue
                inside = slice(place, place + size)
                # The place before a token predicts it; a document's or branch's first token is predicted by nothing.
                skip = 1 if place == start or segment.branch != branch else 0
                if segment.branch != branch:
                    position, branch = trunk, segment.branch
                position_ids[row, inside] = position + np.arange(size)
                branch_ids[row, inside] = branch
                position += size
                trunk = position if branch == 0 else trunk
                before = slice(place - 1 + skip, place + size - 1)
                if isinstance(segment, ImageSegment):
                    visual_mask[row, inside] = True
                    codes.append(segment.codes)
                    grid_index.append(np.arange(size))
                    if segment.supervised:
                        visual_targets[row, before] = visual_count + np.arange(skip, size)
                    visual_count += size
                else:
                    token_ids[row, inside] = segment.ids
                    if segment.supervised:
                        text_targets[row, before] = segment.ids[skip:]
                place += size
            assert place <= length, "packed documents are longer than their row"
            document_ids[row, start:place] = number
    arrays = {
        "token_ids": token_ids,
        "visual_mask": visual_mask,
        "codes": np.concatenate(codes),
        "grid_index": np.concatenate(grid_index),
        "position_ids": position_ids,
        "document_ids": document_ids,
        "branch_ids": branch_ids,
        "text_targets": text_targets,
        "visual_targets": visual_targets,
    }
    return MixedSequence(**{name: torch.from_numpy(value) for name, value in arrays.items()})


def packed_attention_mask(document_ids: Tensor, branch_ids: Tensor) -> Tensor:
    """int64 [B, L] twice -> bool [B, 1, L, L], True where the row's place may look.

    That is back, within its own document, at the trunk and at its own branch. Padding looks at itself, so that no row
    of the softmax is empty.
    """
    length = document_ids.shape[1]
    same = document_ids.unsqueeze(2) == document_ids.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    looked_at = branch_ids.unsqueeze(1)
    open_to = (looked_at == 0) | (looked_at == branch_ids.unsqueeze(2))
    return (same & causal & open_to).unsqueeze(1)
