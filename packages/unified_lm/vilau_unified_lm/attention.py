"""Attention by blocks for long rows on GPUs: the packing's mask as FlexAttention's `BlockMask`.

Nothing of the size of the row squared is stored, and blocks in which no place may look at another are not computed.
`packing.packed_attention_mask` is the same mask in full. FlexAttention trains on GPUs only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from vilau_common.errors import UserError

ATTENTIONS = ("sdpa", "flex_attention")  # transformers' names
BLOCK = 128  # places; the kernels' default


def check_attention(name: str) -> None:
    """Raises UserError unless the backbone can be trained with attention `name` on this machine."""
    if name not in ATTENTIONS:
        raise UserError(f"lm.attention is {name!r}; it is one of {', '.join(ATTENTIONS)}")
    if name == "flex_attention" and not torch.cuda.is_available():
        raise UserError("lm.attention is flex_attention, which trains on GPUs only; take sdpa")


def packed_block_mask(document_ids: Tensor, branch_ids: Tensor, block: int = BLOCK) -> BlockMask:
    """int64 [B, L] twice, as `packing.pack` makes them -> the mask of its documents and branches.

    Found from the documents at the ends of each block, as they stand in order. Of the blocks that are computed, those
    in which every place may look at every other are known, and the others ask `may_look` place by place.
    """
    length = document_ids.shape[1]
    padding = -length % block
    # Padding stands behind the last document: as a document of its own with the highest number it keeps the order.
    last = length + 1
    documents = F.pad(document_ids.masked_fill(document_ids == 0, last), (0, padding), value=last)
    branches = F.pad(branch_ids, (0, padding))

    def may_look(row: Tensor, head: Tensor, place: Tensor, other: Tensor) -> Tensor:
        same = documents[row, place] == documents[row, other]
        looked_at = branches[row, other]
        return same & (other <= place) & ((looked_at == 0) | (looked_at == branches[row, place]))

    ends = documents.unflatten(1, (-1, block))
    first, final = ends[..., 0], ends[..., -1]
    count = first.shape[1]
    before = torch.ones(count, count, dtype=torch.bool, device=documents.device).tril()
    some = before & (final.unsqueeze(1) >= first.unsqueeze(2))
    # One document from the earlier block's first place to the later one's last, of which the earlier holds the trunk.
    trunk = (branches.unflatten(1, (-1, block)) == 0).all(dim=-1)
    whole = before.tril(-1) & (first.unsqueeze(1) == final.unsqueeze(2)) & trunk.unsqueeze(1)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~whole),
        *_listed(whole),
        BLOCK_SIZE=block,
        mask_mod=may_look,
        seq_lengths=(length, length),
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """bool [B, n, n] -> how many of each row are chosen, int32 [B, 1, n], and all, chosen first, [B, 1, n, n]."""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(dim=-1, dtype=torch.int32).unsqueeze(1), order.to(torch.int32).unsqueeze(1)
