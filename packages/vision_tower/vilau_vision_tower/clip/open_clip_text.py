"""open_clip's text transformer in the form in which transformers saves and loads models, and its tokenizers."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from open_clip.model import _build_text_tower
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from vilau_vision_tower.clip.text import OPEN_CLIP_TEXT

# A folder of its own: the model beside it is of a type that transformers does not know.
TOKENIZER = "tokenizer"


@strict
class OpenClipTextConfig(PreTrainedConfig):
    """embed_dim, text_cfg, quick_gelu: as in open_clip's model configurations."""

    model_type = OPEN_CLIP_TEXT

    embed_dim: int = 512
    text_cfg: dict[str, Any] | None = None
    quick_gelu: bool = False

    @property
    def max_position_embeddings(self) -> int:
        """Tokens per caption; 77 where the model's configuration leaves it to open_clip."""
        return int((self.text_cfg or {}).get("context_length", 77))


class OpenClipTextModel(PreTrainedModel):
    """open_clip's `TextTransformer`, with its projection."""

    config_class = OpenClipTextConfig
    config: OpenClipTextConfig

    def __init__(self, config: OpenClipTextConfig) -> None:
        super().__init__(config)
        self.text: TextTransformer = _build_text_tower(
            config.embed_dim, config.text_cfg or {}, config.quick_gelu
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The causal mask, which is not saved; open_clip has initialised all the rest."""
        if isinstance(module, TextTransformer) and module.attn_mask is not None:
            module.attn_mask.copy_(module.build_causal_mask())

    def forward(self, input_ids: Tensor) -> OrderedDict[str, Any]:
        """int64 [B, length] -> text_embeds float [B, E], of any length."""
        return ModelOutput(text_embeds=self.text(input_ids))


def build_tokenizer(config: OpenClipTextConfig, source: str | Path) -> Any:
    """The tokenizer that a text model reads; source: directory or hub id of one that is not part of open_clip."""
    settings = config.text_cfg or {}
    options = settings.get("tokenizer_kwargs", {})
    if "hf_tokenizer_name" not in settings:
        return SimpleTokenizer(context_length=config.max_position_embeddings, **options)
    return HFTokenizer(
        str(source),
        context_length=config.max_position_embeddings,
        tokenizer_mode=settings.get("tokenizer_mode"),
        **options,
    )


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Writes what `load_tokenizer` needs; nothing for the tokenizer that is part of open_clip."""
    if isinstance(tokenizer, HFTokenizer):
        tokenizer.save_pretrained(directory / TOKENIZER)


def load_tokenizer(config: OpenClipTextConfig, directory: Path) -> Any:
    """The tokenizer of a text model saved in `directory`."""
    return build_tokenizer(config, directory / TOKENIZER)
