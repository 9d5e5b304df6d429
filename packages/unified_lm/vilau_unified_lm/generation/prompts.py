"""Prompts of different lengths as one left-padded batch, so that every row's next place is the last one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vilau_common.errors import UserError
from vilau_unified_lm.document import Document
from vilau_unified_lm.packing import MixedSequence, pack


def left_padded(
    prompts: Sequence[Document], depth: int, context: int, to_come: int | Sequence[int]
) -> MixedSequence:
    """One prompt a row; `document_ids` is 0 at the padding in front.

    to_come: how many places follow, after all prompts or after each. Raises UserError where they and their prompt
    exceed the model's context.
    """
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    following = [to_come] * len(prompts) if isinstance(to_come, int) else to_come
    for length, after in zip(lengths, following, strict=True):
        if length + after > context:
            raise UserError(
                f"a prompt has {length} positions and {after} are to follow, but the model's context holds {context}; "
                "shorten the prompt"
            )
    batch = pack([[prompt] for prompt in prompts], longest, depth)

    # Moving whole rows keeps the order of visual positions, so codes and grid_index stay as they are.
    shift = torch.tensor([longest - length for length in lengths]).unsqueeze(1)
    source = (torch.arange(longest).unsqueeze(0) - shift) % longest

    def moved(rows: Tensor) -> Tensor:
        return rows.gather(1, source)

    return MixedSequence(
        token_ids=moved(batch.token_ids),
        visual_mask=moved(batch.visual_mask),
        codes=batch.codes,
        grid_index=batch.grid_index,
        position_ids=moved(batch.position_ids),
        document_ids=moved(batch.document_ids),
        branch_ids=moved(batch.branch_ids),
        text_targets=moved(batch.text_targets),
        visual_targets=moved(batch.visual_targets),
    )
