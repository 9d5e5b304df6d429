"""The causal LM inside the unified LM: any of transformers', from scratch or pretrained.

One dataclass for each kind of the `lm/backbone` config group, and what makes a backbone fit: it must read embeddings
and let nothing pass between the documents that share a row.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vilau_common.errors import UserError
from vilau_unified_lm.packing import packed_attention_mask
from vilau_unified_lm.vocabulary import Vocabulary

# Of hidden states of packed documents, relative to the largest: float32 rounding stays far below, and leaks far above.
LEAK_TOLERANCE = 1e-3
PLAIN = "take one with plain attention, such as llama, qwen2, qwen3 or mistral"


@dataclass(kw_only=True)
class BackboneConfig:
    """Which causal LM. Subclasses are the choices of the `lm/backbone` config group."""

    kind: str = "llama"

    def validate(self) -> None:
        """Raises UserError for settings that do not fit together."""


@dataclass(kw_only=True)
class LlamaBackboneConfig(BackboneConfig):
    """A LLaMA from scratch, by default of LLaMA-2-7B's size: transformers' LlamaConfig; context: positions it holds."""

    kind: str = "llama"
    width: int = 4096
    layers: int = 32
    heads: int = 32
    key_value_heads: int = 32
    mlp_width: int = 11008
    context: int = 4096

    def validate(self) -> None:
        for name in ("width", "layers", "heads", "key_value_heads", "mlp_width", "context"):
            if getattr(self, name) < 1:
                raise UserError(f"lm.backbone.{name} is {getattr(self, name)}; it must be 1 or more")
        for larger, smaller in (("width", "heads"), ("heads", "key_value_heads")):
            if getattr(self, larger) % getattr(self, smaller):
                raise UserError(
                    f"lm.backbone.{larger} {getattr(self, larger)} is not a multiple of "
                    f"lm.backbone.{smaller} {getattr(self, smaller)}"
                )


@dataclass(kw_only=True)
class AnyBackboneConfig(BackboneConfig):
    """Any causal LM of transformers from scratch.

    model_type: transformers' name of the family, such as qwen3; fields: of its configuration, such as hidden_size.
    """

    kind: str = "config"
    model_type: str
    fields: dict[str, Any] = field(default_factory=dict)

    def validate(self) -> None:
        if self.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise UserError(
                f"lm.backbone.model_type is {self.model_type!r}, which is no causal LM of transformers"
                f"{_meant(self.model_type, list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))}"
            )
        family = CONFIG_MAPPING[self.model_type]
        known = [*(entry.name for entry in dataclasses.fields(family)), *family.attribute_map]
        for name in self.fields:
            if name not in known:
                raise UserError(
                    f"lm.backbone.fields.{name} is no field of transformers' {self.model_type} configuration"
                    f"{_meant(name, known)}"
                )


@dataclass(kw_only=True)
class PretrainedBackboneConfig(BackboneConfig):
    """A trained causal LM and its tokenizer: any of transformers.

    pretrained: a directory with config.json, *.safetensors and tokenizer files, or a model id of the Hugging Face hub.
    """

    kind: str = "pretrained"
    pretrained: str


@dataclass(kw_only=True)
class GgufBackboneConfig(BackboneConfig):
    """A trained causal LM and its tokenizer from one GGUF file, its weights made float32.

    file: the path of the file, or package:name of one that an installed Python package carries.
    """

    kind: str = "gguf"
    file: str


BACKBONE_CONFIGS = {
    "llama": LlamaBackboneConfig,
    "config": AnyBackboneConfig,
    "pretrained": PretrainedBackboneConfig,
    "gguf": GgufBackboneConfig,
}


def new_backbone_config(config: BackboneConfig, vocabulary: Vocabulary) -> PreTrainedConfig:
    """The transformers configuration of a backbone from scratch (kinds llama and config) for `vocabulary`'s texts.

    Raises UserError for settings that do not fit together.
    """
    config.validate()
    of_vocabulary = {
        "vocab_size": vocabulary.text_size,
        "bos_token_id": vocabulary.begin,
        "eos_token_id": vocabulary.end,
        "pad_token_id": vocabulary.pad,
    }
    if isinstance(config, AnyBackboneConfig):
        try:
            built = AutoConfig.for_model(config.model_type, **{**config.fields, **of_vocabulary})
            with torch.device("meta"):
                AutoModelForCausalLM.from_config(built)
        except (
            Exception
        ) as error:  # of any kind: each family looks at its fields, or trips over them, in its own way
            told = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"transformers makes no {config.model_type} of lm.backbone.fields: {told}"
            ) from error
        assert isinstance(built, PreTrainedConfig)
        return built
    assert isinstance(config, LlamaBackboneConfig)
    return LlamaConfig(
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        max_position_embeddings=config.context,
        **of_vocabulary,
    )


def check_row_length(config: PreTrainedConfig, row_length: int) -> None:
    """Raises UserError where a row is longer than the backbone's context or the window of one of its layers."""
    context = getattr(config, "max_position_embeddings", None)
    if context is None:
        # Recurrent families, those without positions, and those that keep a language model inside a larger one.
        raise UserError(
            f"a backbone of type {config.model_type} tells no context (max_position_embeddings), so it takes no packed "
            f"rows; {PLAIN}"
        )
    if row_length > context:
        raise UserError(f"data.row_length is {row_length}, but the backbone's context holds {context}")
    window = getattr(config, "sliding_window", None)
    if window is not None and row_length > window:
        # The packed attention mask stands for the library's own, which alone knows of the window.
        raise UserError(
            f"data.row_length is {row_length}, but layers of the backbone ({config.model_type}) look back over "
            f"{window} places only: set data.row_length to {window} or less"
        )


@torch.no_grad()
def check_packing(llm: PreTrainedModel) -> None:
    """Raises UserError unless the backbone reads embeddings and a packed row's documents get what they get alone.

    Recurrent layers, convolutions and attention that takes no mask of ours let one document into the next.
    """
    family = llm.config.model_type
    decoder, device = llm.get_decoder(), llm.device
    embeddings = llm.get_input_embeddings()(torch.arange(6, device=device).view(1, 6))
    documents = torch.tensor([[1, 1, 1, 2, 2, 2]], device=device)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]], device=device)
    was_training = llm.training
    llm.eval()
    try:
        together, alone = (
            decoder(
                inputs_embeds=embeddings[:, places],
                attention_mask=packed_attention_mask(
                    documents[:, places], torch.zeros_like(documents[:, places])
                ),
                position_ids=positions[:, places],
                use_cache=False,
            ).last_hidden_state[:, -3:]
            for places in (slice(0, 6), slice(3, 6))
        )
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"a backbone of type {family} takes no packed rows ({str(error).strip().splitlines()[0]}); {PLAIN}"
        ) from None
    finally:
        llm.train(was_training)
    if not torch.allclose(together, alone, rtol=0, atol=LEAK_TOLERANCE * float(alone.abs().max())):
        raise UserError(
            f"a backbone of type {family} lets documents that share a row see each other; {PLAIN}"
        )


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
