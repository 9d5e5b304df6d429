"""Which tensors of an official checkpoint each tensor of a `UnifiedLM` is made of, part by part.

The depth transformer lies in the tower's file (`rqtransformer.…`); it has a linear layer each for query, key and value.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vilau_common.tensor_links import Link, concatenated, renamed, unsqueezed
from vilau_unified_lm.convert.layout import LLM, PROJECTOR, TOWER
from vilau_unified_lm.depth import DepthTransformer
from vilau_unified_lm.model import UnifiedLM
from vilau_vision_tower.official import PREFIX as TOWER_PREFIX
from vilau_vision_tower.official import STARTED, canonical_name, is_left_over, tower_links

DEPTH_PREFIX = "rqtransformer."
# Of older transformers, which saved what follows from the configuration.
ROTARY = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
HEAD = "lm_head.weight"


def unified_links(model: UnifiedLM, present: Mapping[str, Collection[str]]) -> dict[str, list[Link]]:
    """The links of each part; together those of all tensors but `constants`. The model may lie on the meta device.

    present: the names in each part's official file.
    """
    tower = [
        replace(link, ours=f"vision_tower.{link.ours}")
        for link in tower_links(model.vision_tower, present[TOWER])
    ]
    return {
        LLM: [renamed(f"llm.{name}", name) for name in stored_names(model.llm)],
        TOWER: [*tower, *depth_links(model.depth)],
        PROJECTOR: list(projector_links(model)),
    }


def stored_names(llm: PreTrainedModel) -> list[str]:
    """The names of the LM's tensors; a head that is tied to the embedding is not stored."""
    tied = llm.config.tie_word_embeddings
    return [name for name in llm.state_dict() if not (tied and name == HEAD)]


def depth_links(depth: DepthTransformer) -> list[Link]:
    """The depth transformer."""
    links = [
        *_same("depth.from_features", f"{DEPTH_PREFIX}in_mlp_1"),
        *_same("depth.from_hidden", f"{DEPTH_PREFIX}in_mlp_2"),
        *_same("depth.norm", f"{DEPTH_PREFIX}classifier_mlp.layer_norm"),
        *_same("depth.head", f"{DEPTH_PREFIX}classifier_mlp.linear"),
        unsqueezed("depth.positions", f"{DEPTH_PREFIX}pos_emb_d"),
    ]
    for index in range(len(depth.blocks)):
        ours, theirs = f"depth.blocks.{index}", f"{DEPTH_PREFIX}head_transformer.blocks.{index}"
        for our_name, their_name in (
            ("attention_norm", "ln1"),
            ("out", "attn.proj"),
            ("mlp_norm", "ln2"),
            ("up", "mlp.0"),
            ("down", "mlp.2"),
        ):
            links += _same(f"{ours}.{our_name}", f"{theirs}.{their_name}")
        for part in ("weight", "bias"):
            names = [f"{theirs}.attn.{which}.{part}" for which in ("query", "key", "value")]
            links.append(concatenated(f"{ours}.qkv.{part}", names))
    return links


def projector_links(model: UnifiedLM) -> Iterator[Link]:
    """The projector; a single linear layer stands in the official one without a number."""
    single = model.config.projector_layers == 1
    for name in model.projector.mlp.state_dict():
        yield renamed(f"projector.mlp.{name}", f"layers.{name.removeprefix('0.') if single else name}")


def constants() -> dict[str, Tensor]:
    """Our tensors that no official file has."""
    return {f"vision_tower.{STARTED}": torch.ones((), dtype=torch.bool)}


def canonical(part: str, name: str, model: UnifiedLM, present: Collection[str]) -> str:
    """The name in `unified_links` of a tensor that a part's official file holds, perhaps under several names."""
    return canonical_name(name, model.vision_tower, present) if part == TOWER else name


def left_over(part: str, name: str) -> bool:
    """Whether a part's official file may hold a tensor of this name though ours has no use for it."""
    if part == LLM:
        return ROTARY.fullmatch(name) is not None or name == HEAD
    return part == TOWER and name.startswith(TOWER_PREFIX) and is_left_over(name)


def _same(ours: str, theirs: str) -> Iterator[Link]:
    for part in ("weight", "bias"):
        yield renamed(f"{ours}.{part}", f"{theirs}.{part}")
