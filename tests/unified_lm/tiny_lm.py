"""Tiny random models, documents and code shards for the tests of the unified LM.

No two sizes are equal where a mix-up could hide: 3x3 positions, D = 4 codes of K = 13, features 8 wide, hidden
states 32, depth transformer 24.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vilau_common.data.shards import ShardWriter
from vilau_common.data.text_tokenizer import train_text_tokenizer
from vilau_unified_lm.backbone import LlamaBackboneConfig
from vilau_unified_lm.build import LmConfig, build_lm
from vilau_unified_lm.config import DepthConfig
from vilau_unified_lm.document import Codes, Document, DocumentBuilder
from vilau_unified_lm.losses import LossConfig, StepTargets, UnifiedLoss, unified_loss
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.packing import MixedSequence, pack, packed_attention_mask
from vilau_unified_lm.vocabulary import Vocabulary, add_special_tokens
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.tower import VisionTower

SIDE, POSITIONS, D, K = 3, 9, 4, 13
IMAGE_SIZE = 24
CONTEXT = 96

CAPTIONS = [
    "a red circle",
    "a small blue square at the top left",
    "two green triangles",
    "a large yellow star below a tiny white cross and a grey ring",
]
QUESTIONS = [
    {"question": "how many objects?", "answer": "two", "kind": "count"},
    {"question": "which colour has the circle?", "answer": "red", "kind": "colour"},
    {"question": "is there a star?", "answer": "no", "kind": "presence"},
]


def make_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few merges, with the special tokens, as a training's own."""
    turns = [f"{turn['question']} {turn['answer']}" for turn in QUESTIONS]
    tokenizer = train_text_tokenizer([*CAPTIONS, *turns], directory, vocabulary_size=300)
    add_special_tokens(tokenizer)
    return tokenizer


def make_tower() -> VisionTower:
    """A random tower whose codebooks hold data: one a depth."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": IMAGE_SIZE // SIDE,
    }
    quantizer = {"codebook_size": K, "depth": D, "code_dim": 8}
    decoder = {"kind": "transformer", "width": 32, "layers": 1, "heads": 4}
    tower = VisionTower(VisionTowerConfig(vision_config=vision, quantizer=quantizer, decoder=decoder)).eval()
    tower.quantizer.codebooks.normal_()
    tower.quantizer.started.fill_(True)
    return tower


def lm_config(tower: str = "", text_tokenizer: str = "", grid_positions: bool = False) -> LmConfig:
    return LmConfig(
        tower=tower,
        text_tokenizer=text_tokenizer,
        backbone=LlamaBackboneConfig(
            width=32, layers=2, heads=4, key_value_heads=2, mlp_width=64, context=CONTEXT
        ),
        depth=DepthConfig(width=24, layers=2, heads=3, dropout=0.1),
        grid_positions=grid_positions,
    )


def make_model(vocabulary: Vocabulary, grid_positions: bool = False) -> UnifiedLM:
    """A tiny model in evaluation mode, its weights large enough that every input matters to every output."""
    model = build_lm(lm_config(grid_positions=grid_positions), make_tower(), vocabulary).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.normal_(std=1.2 * parameter.shape[-1] ** -0.5)
    return model


def random_codes(seed: int, positions: int | None = None) -> Codes:
    """int64 [3, 3, D], or [positions, D]."""
    shape = (SIDE, SIDE, D) if positions is None else (positions, D)
    return np.random.default_rng(seed).integers(K, size=shape)


def all_forms(builder: DocumentBuilder) -> list[Document]:
    """Documents of every form and of different lengths."""
    turns = [(turn["question"], turn["answer"]) for turn in QUESTIONS]
    return [
        builder.text_to_image(CAPTIONS[0], random_codes(0)),
        builder.questions(random_codes(1), turns[:2], independent=True),
        builder.text(CAPTIONS[3]),
        builder.image_to_text(random_codes(2), CAPTIONS[1]),
        builder.text_to_image("", random_codes(3)),
        builder.questions(random_codes(4), turns, independent=False),
        builder.text(CAPTIONS[0]),
        builder.text_to_image(CAPTIONS[3], random_codes(5)),
    ]


def as_tensor(codes: Codes) -> Tensor:
    return torch.from_numpy(codes.reshape(-1, codes.shape[-1]))


def last_hidden(model: UnifiedLM, document: Document) -> Tensor:
    """The hidden state at the document's end, float [hidden], from one pass over all of it."""
    batch = pack([[document]], len(document), D)
    features = model.image_tokenizer.embed_codes(batch.codes).sum(dim=-2)
    mask = packed_attention_mask(batch.document_ids, batch.branch_ids)
    return model.backbone(model.embed(batch, features), mask, batch.position_ids)[0, -1]


def objective(model: UnifiedLM, batch: MixedSequence, config: LossConfig | None = None) -> UnifiedLoss:
    """The loss of a batch that is a step of its own."""
    config = config or LossConfig()
    step = StepTargets.of([batch], torch.device("cpu"))
    return unified_loss(model(batch, config), step, config.normalization)


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all gradients there are."""
    named = module.named_parameters()
    return {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all its parameters and buffers, those that are not saved included."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: value.detach().clone() for name, value in named.items()}


def assert_same_state(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


# --- stored samples ---------------------------------------------------------------------------------------------


def sample_fields(codes: np.ndarray, **changes: Any) -> dict[str, bytes]:
    """A sample of code shards; codes [V, 3, 3, D]; `changes` replace entries of its record."""
    record = {"captions": CAPTIONS, "questions": QUESTIONS, "scene": None, "texts": CAPTIONS[:2], **changes}
    file = io.BytesIO()
    np.save(file, codes.astype(np.uint16))
    return {"codes.npy": file.getvalue(), "json": json.dumps(record).encode()}


def write_codes(directory: Path, samples: Sequence[Mapping[str, bytes]], info: Mapping[str, Any]) -> None:
    """Code shards as `vilau tokenize` makes them. info: what their dataset.json tells of the tower."""
    with ShardWriter(directory, info, samples_per_shard=20) as writer:
        for number, fields in enumerate(samples):
            writer.write(f"{number:04d}", fields)
