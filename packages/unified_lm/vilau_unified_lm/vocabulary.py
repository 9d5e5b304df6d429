"""The extended vocabulary: text ids [0, V), then one visual token per code and depth.

Code k at depth d has id V + d * K + k. Visual tokens have no embedding rows (VILA-U embeds a position by the sum
of its code embeddings) and no logits of the text head; the ids name them where one stream holds both kinds.

A pretrained backbone gets one row for each text id, the added special tokens included (`extend_embeddings`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
            text_size=max(tokenizer.get_vocab().values()) + 1,  # some tokenizers leave ids out
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

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Of <image_start>, <image_end>, <video_start>, <video_end>."""
        return (self.image_start, self.image_end, self.video_start, self.video_end)

    def visual_ids(self, codes: Tensor) -> Tensor:
        """codes int64 [..., D] -> token ids int64 [..., D]."""
        return codes + self._offsets(codes)

    def codes(self, visual_ids: Tensor) -> Tensor:
        """Token ids int64 [..., D] -> codes int64 [..., D]; the inverse of `visual_ids`."""
        return visual_ids - self._offsets(visual_ids)

    def _offsets(self, like: Tensor) -> Tensor:
        depths = torch.arange(self.depth, device=like.device)
        return self.text_size + depths * self.codebook_size


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Adds what the unified LM needs to a text tokenizer; returns the ids of the tokens that are new."""
    known = tokenizer.get_vocab()
    # Those that a pretrained tokenizer has (of its chat template, say) stay special.
    tokenizer.add_special_tokens(
        {"extra_special_tokens": list(SPECIAL_TOKENS)}, replace_extra_special_tokens=False
    )
    new = [token for token in SPECIAL_TOKENS if token not in known]
    return [int(id_) for id_ in tokenizer.convert_tokens_to_ids(new)]


@torch.no_grad()
def extend_embeddings(llm: PreTrainedModel, text_size: int, new: Collection[int]) -> None:
    """Give a pretrained causal LM one row for each of `text_size` ids, in its embedding and in its head, tied or not.

    new: ids that no one has trained. Their rows, and those that the LM never had, become the mean of the others: the
    LM then neither expects nor avoids them. Rows that no text id has (padding to a multiple) are dropped.
    """
    had = llm.get_input_embeddings().weight.shape[0]
    untrained = {*new, *range(had, text_size)}
    llm.resize_token_embeddings(text_size, mean_resizing=False)
    if not untrained:
        return
    fresh = torch.tensor(sorted(untrained))
    trained = torch.tensor([id_ for id_ in range(text_size) if id_ not in untrained])
    ends = (llm.get_input_embeddings(), llm.get_output_embeddings())
    # Tied ends share one weight, which must not be averaged twice; a head may have a bias besides.
    weights = {id(weight): weight for end in ends for weight in end.parameters()}
    for weight in weights.values():
        weight[fresh] = weight[trained].mean(dim=0)
