"""The extended vocabulary: text ids [0, V), then one visual token per code and depth.

Code k at depth d has id V + d * K + k. Visual tokens have no embedding rows (VILA-U embeds a position by the sum
of its code embeddings) and no logits of the text head; the ids name them where one stream holds both kinds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vilau_common.errors import UserError

IMAGE_START, IMAGE_END = "<image_start>", "<image_end>"
VIDEO_START, VIDEO_END = "<video_start>", "<video_end>"
SPECIAL_TOKENS = (IMAGE_START, IMAGE_END, VIDEO_START, VIDEO_END)
# The same in the released models' tokenizers, in this order at the end of the vocabulary.
RELEASED_SPECIAL_TOKENS = ("<im_start>", "<im_end>", "<vi_start>", "<vi_end>")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """text_size: V, specials included; codebook_size: K; depth: D; and the ids of the special tokens."""

    text_size: int
    codebook_size: int
    depth: int
    begin: int
    end: int
    pad: int
    image_start: int
    image_end: int
    video_start: int
    video_end: int

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, codebook_size: int, depth: int) -> Vocabulary:
        """Raises UserError for a tokenizer that lacks one of the special tokens."""
        released = set(RELEASED_SPECIAL_TOKENS) <= tokenizer.get_vocab().keys()
        names = list(RELEASED_SPECIAL_TOKENS if released else SPECIAL_TOKENS)
        specials = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(names), strict=True))
        missing = [token for token, id_ in specials.items() if id_ is None or id_ == tokenizer.unk_token_id]
        if tokenizer.eos_token_id is None:
            missing.append("an end-of-text token")
        if missing:
            raise UserError(
                f"the text tokenizer lacks {', '.join(missing)}; add them with `add_special_tokens`"
            )
        end = tokenizer.eos_token_id
        return cls(
            text_size=len(tokenizer),
            codebook_size=codebook_size,
            depth=depth,
            begin=end if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
            end=end,
            pad=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            image_start=specials[IMAGE_START],
            image_end=specials[IMAGE_END],
            video_start=specials[VIDEO_START],
            video_end=specials[VIDEO_END],
        )

    @property
    def size(self) -> int:
        """Text and visual tokens together."""
        return self.text_size + self.depth * self.codebook_size

    def visual_ids(self, codes: Tensor) -> Tensor:
        """codes int64 [..., D] -> token ids int64 [..., D]."""
        return codes + self._offsets(codes)

    def codes(self, visual_ids: Tensor) -> Tensor:
        """Token ids int64 [..., D] -> codes int64 [..., D]; the inverse of `visual_ids`."""
        return visual_ids - self._offsets(visual_ids)

    def _offsets(self, like: Tensor) -> Tensor:
        depths = torch.arange(self.depth, device=like.device)
        return self.text_size + depths * self.codebook_size


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Adds what the unified LM needs to a text tokenizer; returns how many tokens are new."""
    return int(tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)}))
