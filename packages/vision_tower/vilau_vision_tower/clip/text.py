"""The frozen text side of a CLIP: captions -> token ids -> unit vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipTextModel,
)

from vilau_common.errors import UserError

OPEN_CLIP_TEXT = "open_clip_text"


def load_text_tokenizer(directory: str | Path) -> PreTrainedTokenizerFast:
    """The text tokenizer saved in `directory`. Raises UserError where there is none, or none that can be read."""
    path = Path(directory)
    if not (path / "tokenizer_config.json").is_file():
        raise UserError(f"no text tokenizer in {path}: expected tokenizer.json and tokenizer_config.json")
    # Where the tokenizer is whole, no class has to be looked up by the model beside it (which may be ours).
    whole = (path / "tokenizer.json").is_file()
    try:
        tokenizer: PreTrainedTokenizerFast = (
            PreTrainedTokenizerFast if whole else AutoTokenizer
        ).from_pretrained(path)
    except (ImportError, OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        raise UserError(
            f"the text tokenizer in {path} cannot be read; tokenizer.json is best: {cause}"
        ) from None
    return tokenizer


def caption_ids(tokenizer: Any, captions: list[str], length: int) -> Tensor:
    """Captions as the text encoder reads them: int64 [B, length], end-of-text, then padded.

    tokenizer: of transformers, or of open_clip (a callable from texts to ids).
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        padded: Tensor = tokenizer(captions, context_length=length)
        return padded
    # SigLIP's and CLIP's own tokenizers end a text by themselves; one trained from scratch does not.
    bare = tokenizer("")["input_ids"]
    end = "" if bare and bare[-1] == tokenizer.eos_token_id else tokenizer.eos_token or ""
    encoded = tokenizer(
        [caption + end for caption in captions],
        padding="max_length",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    ids: Tensor = encoded["input_ids"]
    return ids


class TextEncoder(nn.Module):
    """The frozen text encoder: captions -> unit vectors float [B, E], comparable with the image embeddings.

    model: transformers' SiglipTextModel or CLIPTextModelWithProjection, or an `OpenClipTextModel`; tokenizer: its
    own (see `caption_ids`).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer

    @property
    def length(self) -> int:
        """Tokens per caption."""
        return int(self.model.config.max_position_embeddings)

    @torch.no_grad()
    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [B, length] -> unit vectors float [B, E]."""
        output = self.model(input_ids=input_ids)
        # SigLIP's projection is part of its pooling.
        vectors = output.text_embeds if "text_embeds" in output else output.pooler_output
        return F.normalize(vectors, dim=-1)

    def embed(self, captions: list[str]) -> Tensor:
        """Captions -> unit vectors float [B, E]."""
        device = next(self.model.parameters()).device
        return self(caption_ids(self.tokenizer, captions, self.length).to(device))

    def save_pretrained(self, directory: Path) -> None:
        """Writes model and tokenizer so that `from_pretrained` reads them back."""
        self.model.save_pretrained(directory)
        if isinstance(self.tokenizer, PreTrainedTokenizerBase):
            self.tokenizer.save_pretrained(directory)
        else:
            from vilau_vision_tower.clip.open_clip_text import save_tokenizer

            save_tokenizer(self.tokenizer, directory)

    @classmethod
    def from_pretrained(cls, directory: Path) -> TextEncoder:
        """Reads what `save_pretrained` wrote. Raises UserError where there is none."""
        config = directory / "config.json"
        if not config.is_file():
            raise UserError(f"no text encoder in {directory}: expected config.json and model.safetensors")
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        if kind == OPEN_CLIP_TEXT:
            from vilau_vision_tower.clip.open_clip_text import OpenClipTextModel, load_tokenizer

            model = OpenClipTextModel.from_pretrained(directory, dtype=torch.float32)
            return cls(model, load_tokenizer(model.config, directory))
        family = CLIPTextModelWithProjection if kind == "clip_text_model" else SiglipTextModel
        return cls(family.from_pretrained(directory, dtype=torch.float32), load_text_tokenizer(directory))
