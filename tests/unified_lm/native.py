"""A tiny run and what `vilau export` makes of it, for the tests of the Hugging Face interface."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from tiny_lm import IMAGE_SIZE, make_model
from transformers import PreTrainedTokenizerFast

from vilau_common.images import Picture
from vilau_unified_lm.huggingface.export import export
from vilau_unified_lm.vocabulary import Vocabulary

RESULTS = {"lm/question_accuracy": 0.875, "tower/psnr": 27.5}


def make_run(directory: Path, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> Path:
    """lm/, tower/ and results.json, as of a whole line that was evaluated with sampling of its own."""
    model = make_model(vocabulary)
    model.save_pretrained(directory / "lm" / "model")
    tokenizer.save_pretrained(directory / "lm" / "model")
    model.vision_tower.save_pretrained(directory / "tower" / "model")
    for part, data in (("lm", "/somewhere/codes"), ("tower", "data/scenes")):
        config = {"data": {"directory": data}, "training": {"steps": 7}}
        (directory / part / "config.yaml").write_text(yaml.safe_dump(config))
    (directory / "results.json").write_text(json.dumps(RESULTS))
    (directory / "evaluation").mkdir()
    sampling = {"temperature": 1.3, "top_k": 8, "top_p": 0.95, "guidance": 2.0}
    settings = {"directory": str(directory), "data": "data/scenes", "sampling": sampling}
    (directory / "evaluation" / "config.yaml").write_text(yaml.safe_dump(settings))
    return directory


def make_exported(directory: Path, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> Path:
    """run/ and out/; returns out/."""
    torch.manual_seed(0)
    run = make_run(directory / "run", tokenizer, vocabulary)
    return export(run, directory / "out", "cc0-1.0")


def random_pictures(seed: int, count: int) -> Picture:
    """uint8 [count, H, W, 3]."""
    shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
