"""Two processes under gloo, of two accumulated batches each, train as one does on the joint batch."""

from __future__ import annotations

import json
import multiprocessing
import socket
from pathlib import Path
from typing import Any

import lm_ranks
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vilau_unified_lm.losses import NORMALIZATIONS

PATIENCE = 120.0  # seconds


def outcome(run: Path) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The losses that were logged, and the weights."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [{name: value for name, value in line.items() if "loss" in name} for line in lines]
    return losses, load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def tokenizer_directory(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def together(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the runs of two processes."""
    path = tmp_path_factory.mktemp("two")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vilau_unified_lm.task", "torch._dynamo"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children: list[Any] = [
        context.Process(target=lm_ranks.child, args=(rank, port, tokenizer_directory, path, NORMALIZATIONS))
        for rank in range(lm_ranks.WORLD)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE)
        child.kill()
    assert [child.exitcode for child in children] == [0] * lm_ranks.WORLD
    return path


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_processes_and_accumulated_batches_train_as_the_joint_batch(
    together: Path, tokenizer_directory: Path, tmp_path: Path, normalization: str
) -> None:
    """Weights and every logged loss, though the parts have different numbers of text and visual tokens."""
    lm_ranks.run(tokenizer_directory, tmp_path, normalization, rank=0, world=1, accumulation=1)
    (losses, weights), (expected_losses, expected) = outcome(together / normalization), outcome(tmp_path)
    assert [line.keys() for line in losses] == [line.keys() for line in expected_losses]
    for line, expected_line in zip(losses, expected_losses, strict=True):
        for name, value in expected_line.items():
            assert line[name] == pytest.approx(value, rel=1e-4), name
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)
