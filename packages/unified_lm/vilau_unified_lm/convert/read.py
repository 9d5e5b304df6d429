"""An official checkpoint as a `UnifiedLM`, in memory or converted on disk.

Nothing is read but headers until configurations, tokenizer, names and shapes have been found to fit together.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vilau_common import atomic
from vilau_common.errors import UserError
from vilau_common.tensor_links import Link
from vilau_common.weight_files import WeightFiles
from vilau_unified_lm.config import UnifiedLMConfig
from vilau_unified_lm.convert.config import unified_config
from vilau_unified_lm.convert.layout import LLM, PARTS, OfficialCheckpoint, open_official
from vilau_unified_lm.convert.links import canonical, constants, left_over, unified_links
from vilau_unified_lm.convert.template import OFFICIAL, Template
from vilau_unified_lm.convert.tokenizer import official_tokenizer
from vilau_unified_lm.model import UnifiedLM

SHARD_SIZE = "5GB"
METADATA = {"format": "pt"}

# What `quantization_config` leaves alone: the tower's codes and the depth transformer's are sensitive, and small.
UNQUANTIZED = ("vision_tower", "projector", "depth", "lm_head")


@dataclass(frozen=True)
class Inspected:
    """An official checkpoint that fits together. model: ours, on the meta device."""

    checkpoint: OfficialCheckpoint
    tokenizer: PreTrainedTokenizerBase
    model: UnifiedLM
    links: dict[str, list[Link]]

    def state(self) -> dict[str, Tensor]:
        """Our state dict with the tensors as they are stored, mapped into memory where they are the same."""
        state = constants()
        for part, links in self.links.items():
            files = self.checkpoint.weights[part]
            for link in links:
                state[link.ours] = _joined(link, files)
        return state


def inspect(directory: Path) -> Inspected:
    """Raises UserError, naming file and key, for what is missing, cut off, unknown or does not fit."""
    checkpoint = open_official(directory)
    config = unified_config(checkpoint)
    tokenizer = official_tokenizer(checkpoint)
    model = skeleton(config)
    links = unified_links(model, checkpoint.weights)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for part in PARTS:
        _check_part(part, checkpoint.weights[part], links[part], shapes, model)
    return Inspected(checkpoint, tokenizer, model, links)


def skeleton(config: UnifiedLMConfig) -> UnifiedLM:
    """The model of a configuration on the meta device: names and shapes without weights."""
    with torch.device("meta"):
        return UnifiedLM(config)


def load_official(
    directory: Path,
    *,
    dtype: torch.dtype | str = "auto",
    device_map: str | dict[str, Any] | None = None,
    max_memory: dict[int | str, Any] | None = None,
    offload_folder: str | None = None,
    quantization_config: Any = None,
) -> tuple[UnifiedLM, PreTrainedTokenizerBase]:
    """The model, in evaluation mode, and its tokenizer; the settings are `PreTrainedModel.from_pretrained`'s.

    dtype: 'auto' takes the stored one. quantization_config: leaves UNQUANTIZED alone unless it says otherwise.
    """
    inspected = inspect(directory)
    if getattr(quantization_config, "llm_int8_skip_modules", []) is None:
        quantization_config = copy.copy(quantization_config)
        quantization_config.llm_int8_skip_modules = list(UNQUANTIZED)
    model, report = UnifiedLM.from_pretrained(
        None,
        config=inspected.model.config,
        state_dict=inspected.state(),
        dtype=dtype,
        device_map=device_map,
        max_memory=max_memory,
        offload_folder=offload_folder,
        quantization_config=quantization_config,
        output_loading_info=True,
    )
    # Names and shapes have been checked: anything here is ours to mend.
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval(), inspected.tokenizer


def convert_from_official(directory: Path, output: Path) -> Path:
    """Write an official checkpoint as a directory of ours; every tensor keeps its dtype and its bytes.

    What ours does not hold (the SigLIP's text model, names, files) goes along in `official/`, so that the way back is
    open. Raises UserError as `inspect`, and where `output` exists.
    """
    if output.exists():
        raise UserError(f"{output} exists; give a directory that does not")
    inspected = inspect(directory)
    with atomic.new_directory(output) as target:
        config = inspected.model.config
        config.architectures = [UnifiedLM.__name__]
        config.save_pretrained(target)
        inspected.tokenizer.save_pretrained(target)
        save_torch_state_dict(inspected.state(), target, max_shard_size=SHARD_SIZE, metadata=METADATA)
        template = Template.of(inspected.checkpoint, inspected.links, inspected.model)
        template.save(target / OFFICIAL)
    return output


def _joined(link: Link, files: WeightFiles) -> Tensor:
    parts = [files.tensor(name) for name in link.theirs]
    if len({part.dtype for part in parts}) > 1:
        raise UserError(
            f"{files.main_file}: {', '.join(link.theirs)} must have one dtype, but have "
            f"{', '.join(str(part.dtype) for part in parts)}"
        )
    return link.join(parts)


def _check_part(
    part: str,
    files: WeightFiles,
    links: list[Link],
    shapes: Mapping[str, tuple[int, ...]],
    model: UnifiedLM,
) -> None:
    """Names and shapes of a part's tensors against those that our model is made of."""
    known = set()
    for link in links:
        for name, shape in link.their_shapes(shapes[link.ours]).items():
            known.add(name)
            if name not in files:
                raise UserError(f"{files.main_file} lacks {name}")
            if files[name].shape != shape:
                raise UserError(
                    f"{files[name].file}: {name} has the shape {list(files[name].shape)}, but by the config.json "
                    f"beside it, it is {list(shape)}"
                )
    for name in files:
        if canonical(part, name, model, files) not in known and not left_over(part, name):
            raise UserError(
                f"{files[name].file} holds {name}, which no {'LLaMA' if part == LLM else part} of its config.json has"
            )
