"""Tiny random causal LMs of several families, saved to disk with a tokenizer as a hub's model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_lm import CAPTIONS, CONTEXT
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from vilau_common.data.text_tokenizer import train_text_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "llama_tied": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": None},
    "phi": {},  # its head has a bias
    "gpt2": {},  # learned positions, other names for its parts
}
PADDING = 11  # rows of the embedding that no token of the tokenizer has


def save_backbone(directory: Path, family: str, padding: int = PADDING, **changes: Any) -> PreTrainedModel:
    """A random model of the family with weights that matter, in `directory`, with a tokenizer without our tokens."""
    tokenizer = train_text_tokenizer(CAPTIONS, directory, vocabulary_size=300)
    sizes = dict(SIZES)
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
    config = AutoConfig.for_model(
        family.removesuffix("_tied"),
        vocab_size=len(tokenizer) + padding,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**sizes, **FAMILIES.get(family, {}), **changes},
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=1.2 * weight.shape[-1] ** -0.5)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(directory)
    return model
