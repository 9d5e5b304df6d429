"""What the processor gives, as what the model and the engine read."""

from __future__ import annotations

import torch
from torch import Tensor

from vilau_common.errors import UserError
from vilau_unified_lm.document import Document, Segment, TextSegment
from vilau_unified_lm.huggingface.tokens import runs
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.packing import IGNORE, MixedSequence
from vilau_unified_lm.segments import image


def encoded(model: UnifiedLM, pixel_values: Tensor | None) -> Tensor:
    """Pictures float [N, 3, H, W] in [-1, 1] -> their codes int64 [N, T, D]; None: of no picture."""
    tokenizer = model.image_tokenizer
    height, width = tokenizer.grid
    if pixel_values is None:
        return torch.zeros(0, height * width, tokenizer.depth, dtype=torch.long, device=model.device)
    return tokenizer.encode(pixel_values.to(model.device).float()).flatten(1, 2)


def check_places(model: UnifiedLM, input_ids: Tensor, pixel_values: Tensor | None) -> None:
    """Raises UserError unless input_ids has as many visual positions as the pictures, [N, 3, H, W], have."""
    places = int((input_ids >= model.config.backbone_config.vocab_size).sum())
    height, width = model.image_tokenizer.grid
    pictures = 0 if pixel_values is None else len(pixel_values)
    if places != pictures * height * width:
        raise UserError(
            f"input_ids has {places} visual positions, but pixel_values holds {pictures} pictures of "
            f"{height * width} each; give both as the processor made them"
        )


def mixed_sequence(
    model: UnifiedLM, input_ids: Tensor, attention_mask: Tensor | None, codes: Tensor
) -> MixedSequence:
    """One document a row, padded on either side, without targets; input_ids int64 [B, L], codes int64 [N, T, D]."""
    present = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    visual = input_ids >= model.config.backbone_config.vocab_size
    nothing = torch.full_like(input_ids, IGNORE)
    places = torch.arange(codes.shape[1], device=input_ids.device)
    return MixedSequence(
        token_ids=input_ids.masked_fill(visual, 0),
        visual_mask=visual,
        codes=codes.flatten(0, 1),
        grid_index=places.repeat(codes.shape[0]),
        position_ids=(present.cumsum(dim=1) - 1).clamp(min=0),
        document_ids=present,
        branch_ids=torch.zeros_like(input_ids),
        text_targets=nothing,
        visual_targets=nothing,
    )


def documents(
    model: UnifiedLM, input_ids: Tensor, attention_mask: Tensor | None, codes: Tensor
) -> list[Document]:
    """The prompts of a batch, int64 [B, L], without their padding; codes int64 [N, T, D] in the order of the batch."""
    text_size = int(model.config.backbone_config.vocab_size)
    positions = codes.shape[1]
    pictures = iter(codes.cpu().numpy())
    prompts = []
    for row, ids in enumerate(input_ids.tolist()):
        if attention_mask is not None:
            ids = [id_ for id_, there in zip(ids, attention_mask[row].tolist(), strict=True) if there]
        segments: list[Segment] = []
        for visual, run in runs(ids, text_size):
            if not visual:
                segments.append(TextSegment(tuple(run), supervised=False))
            else:
                # Frames of a video stand one behind the other.
                segments += [image(next(pictures), supervised=False) for _ in run[::positions]]
        prompts.append(Document(tuple(segments)))
    return prompts
