"""The processor's prompts -> the engine's requests, all of them checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vilau_common.errors import UserError
from vilau_unified_lm.document import Document
from vilau_unified_lm.generation.request import Begin, Request
from vilau_unified_lm.huggingface import inputs
from vilau_unified_lm.huggingface.settings import Settings, seeds_of
from vilau_unified_lm.model import UnifiedLM

BEGINS = {"text": Begin.TEXT, "interleaved": Begin.TEXT, "image": Begin.IMAGE, "video": Begin.VIDEO}


@dataclass(frozen=True)
class Batch:
    """Prompts of a batch, padded on either side."""

    ids: Tensor  # int64 [B, L], V at visual positions
    mask: Tensor | None  # int64 [B, L], 0 at padding; None: there is none


def requests_of(
    model: UnifiedLM,
    mode: str,
    chosen: Settings,
    prompts: Batch,
    negatives: Batch | None,
    pixel_values: Tensor | None,
    seeds: int | Sequence[int] | None,
    num_frames: int | None,
) -> list[Request]:
    """A request for each sequence; negatives: what guidance leads away from, in modes that draw.

    Raises UserError for prompts of another mode, that do not fit their pictures, or that leave no room.
    """
    begin = BEGINS[mode]
    vocabulary = chosen.vocabulary
    opening = {Begin.IMAGE: vocabulary.image_start, Begin.VIDEO: vocabulary.video_start}
    if begin in opening and bool((prompts.ids[:, -1] != opening[begin]).any()):
        raise UserError(
            f"the prompt is none of a drawing: give generation_mode={mode!r} to the processor, too (in a pipeline: "
            f"processor_kwargs={{'generation_mode': {mode!r}}})"
        )
    if num_frames is not None and num_frames < 1:
        raise UserError(f"num_frames is {num_frames}; a video has at least 1 frame")
    frames = num_frames or model.config.video_frames
    drawn = seeds_of(seeds, len(prompts.ids) * chosen.sequences)
    inputs.check_places(model, prompts.ids, pixel_values)
    lengths = (prompts.ids >= 0).sum(dim=1) if prompts.mask is None else prompts.mask.sum(dim=1)
    positions = [_positions(model, int(length), begin, chosen, frames) for length in lengths]
    documents = inputs.documents(model, prompts.ids, prompts.mask, inputs.encoded(model, pixel_values))
    away: Sequence[Document | None] = [None] * len(documents)
    if negatives is not None and mode != "text":
        away = inputs.documents(model, negatives.ids, negatives.mask, inputs.encoded(model, None))
    return [
        Request(
            prompt=documents[row],
            negative=away[row],
            begin=begin,
            seed=seed,
            positions=positions[row],
            frames=frames,
        )
        for row, seed in ((number // chosen.sequences, seed) for number, seed in enumerate(drawn))
    ]


def _positions(model: UnifiedLM, length: int, begin: Begin, chosen: Settings, frames: int) -> int:
    """At most so many tokens and visual positions follow a prompt of this length."""
    height, width = model.image_tokenizer.grid
    if begin is not Begin.TEXT:
        return height * width * (frames if begin is Begin.VIDEO else 1)
    context = int(model.config.backbone_config.max_position_embeddings)
    room = context - length
    if room < 1:
        raise UserError(f"a prompt takes {length} positions, and the model's context holds {context}")
    return room if chosen.max_new_tokens is None else min(room, chosen.max_new_tokens)
