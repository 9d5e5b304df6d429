"""Attention by blocks = the mask in full: block for block, and through the backbone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_packing import random_document
from tiny_lm import D, all_forms, make_model
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from vilau_common.errors import UserError
from vilau_unified_lm.attention import check_attention, packed_block_mask
from vilau_unified_lm.document import Document, DocumentBuilder, TextSegment
from vilau_unified_lm.packing import MixedSequence, pack, packed_attention_mask
from vilau_unified_lm.vocabulary import Vocabulary


def in_full(mask: BlockMask, block: int) -> Tensor:
    """bool [B, 1, L, L]: what the kernels compute, from the lists of blocks."""
    rows, _, places, _ = mask.shape
    count = -(-places // block)
    seen = torch.zeros(rows, 1, count * block, count * block, dtype=torch.bool)
    asked = torch.vmap(torch.vmap(mask.mask_mod, (None, None, None, 0)), (None, None, 0, None))
    for row in range(rows):
        for here in range(count):
            inside = slice(here * block, (here + 1) * block)
            for number in range(int(mask.kv_num_blocks[row, 0, here])):
                there = int(mask.kv_indices[row, 0, here, number])
                others = slice(there * block, (there + 1) * block)
                indices = torch.arange(count * block)
                seen[row, 0, inside, others] = asked(
                    torch.tensor(row), torch.tensor(0), indices[inside], indices[others]
                )
            for number in range(int(mask.full_kv_num_blocks[row, 0, here])):
                there = int(mask.full_kv_indices[row, 0, here, number])
                others = slice(there * block, (there + 1) * block)
                assert not seen[row, 0, inside, others].any()  # no block is computed twice
                seen[row, 0, inside, others] = True
    return seen[..., :places, :places]


def long_document(rng: np.random.Generator) -> Document:
    """Longer than a block, with branches in the end."""
    texts = [TextSegment(tuple(rng.integers(1, 200, size=20).tolist()), True, branch) for branch in range(4)]
    return Document((TextSegment(tuple(range(1, 30)), False), *texts))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block", [4, 8])
def test_blocks_are_the_mask_in_full(seed: int, block: int) -> None:
    """Documents shorter and longer than a block, with branches; lengths that blocks divide, or not; padding."""
    rng = np.random.default_rng(seed)
    rows = [[random_document(rng) for _ in range(4)], [long_document(rng), random_document(rng)], []]
    length = max(sum(map(len, row)) for row in rows) + seed * 3
    batch = pack(rows, length, D)
    mask = packed_block_mask(batch.document_ids, batch.branch_ids, block)
    expected = packed_attention_mask(batch.document_ids, batch.branch_ids)
    assert torch.equal(in_full(mask, block), expected)
    assert mask.full_kv_num_blocks.sum() > 0
    # No block is computed in which no two places stand in one document.
    same = packed_attention_mask(batch.document_ids, torch.zeros_like(batch.branch_ids))[:, 0]
    overhang = -length % block
    same = torch.nn.functional.pad(same, (0, overhang, 0, overhang))
    blocks = same.unflatten(2, (-1, block)).unflatten(1, (-1, block)).any(dim=4).any(dim=2)
    computed = mask.kv_num_blocks + mask.full_kv_num_blocks
    assert torch.equal(computed[:, 0].long(), blocks.sum(dim=-1))


@pytest.fixture
def batch(builder: DocumentBuilder) -> MixedSequence:
    documents = all_forms(builder)
    return pack([documents[:2], documents[2:4], documents[5:6]], 90, D)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_backbone_computes_the_same_by_blocks(
    vocabulary: Vocabulary, batch: MixedSequence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through transformers' own attention, whose compilation a CPU does not need."""
    monkeypatch.setattr(
        "transformers.integrations.flex_attention.WrappedFlexAttention",
        lambda training: lambda: flex_attention,
    )
    model = make_model(vocabulary)
    with torch.no_grad():
        expected = model.logits(batch)
        model.llm.set_attn_implementation("flex_attention")
        got = model.logits(batch)
    torch.testing.assert_close(got.text, expected.text, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.visual, expected.visual, rtol=0, atol=1e-5)


def test_attention_that_cannot_be_trained_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="lm.attention is 'flash'; it is one of sdpa, flex_attention"):
        check_attention("flash")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="flex_attention, which trains on GPUs only; take sdpa"):
        check_attention("flex_attention")
    check_attention("sdpa")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_attention("flex_attention")
