"""Two processes under gloo train the LM as one does on the joint batch: DDP, and FSDP that divides its weights."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import socket
from pathlib import Path
from typing import Any

import lm_devices
import pytest
import torch
from lm_devices import STEPS, STOP, WORLD
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from vilau_common.training import TrainingInterrupted
from vilau_unified_lm.lora import ADAPTER
from vilau_unified_lm.model import load_unified_lm

PATIENCE = 170.0  # seconds


@pytest.fixture(scope="module")
def tokenizer_directory(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def alone(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process comes to on the joint batches."""
    path = tmp_path_factory.mktemp("one")
    torch.set_num_threads(1)
    lm_devices.run_lm(path, tokenizer_directory)
    return path


def in_two_processes(tokenizer: Path, path: Path, names: list[str]) -> Path:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vilau_unified_lm.train", "torch._dynamo", "torch.distributed.fsdp"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children: list[Any] = [
        context.Process(target=lm_devices.child, args=(rank, port, tokenizer, path, names))
        for rank in range(WORLD)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE)
        child.kill()
    assert [child.exitcode for child in children] == [0] * WORLD
    return path


@pytest.fixture(scope="module")
def ddp(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_two_processes(tokenizer_directory, tmp_path_factory.mktemp("ddp"), ["ddp"])


@pytest.fixture(scope="module")
def fsdp(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the runs of two processes under FSDP, and one stopped in the middle."""
    names = [name for name in lm_devices.RUNS if name != "ddp"]
    return in_two_processes(tokenizer_directory, tmp_path_factory.mktemp("fsdp"), names)


def logged(run: Path) -> list[dict[str, float]]:
    """Losses and norms, step by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            name: value
            for name, value in line.items()
            if name.startswith(("loss/", "train/loss", "gradient_norm", "learning_rate"))
        }
        for line in lines
    ]


def assert_same_training(run: Path, other: Path, rtol: float = 1e-4, atol: float = 2e-5) -> None:
    assert len(logged(run)) == STEPS
    for one, two in zip(logged(run), logged(other), strict=True):
        assert "train/loss/visual_d0" in one
        assert one == pytest.approx(two, rel=rtol)
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (run, other))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=rtol, atol=atol, msg=name)


def test_ddp_trains_as_one_process_on_the_joint_batch(ddp: Path, alone: Path) -> None:
    assert_same_training(ddp / "ddp", alone)


@pytest.mark.slow
def test_fsdp_trains_as_one_process_on_the_joint_batch(fsdp: Path, alone: Path) -> None:
    """Clipping over the parts of the gradient and averaged weights included; what is saved loads without FSDP."""
    assert_same_training(fsdp / "fsdp2", alone)
    model = load_unified_lm(fsdp / "fsdp2")
    assert type(model).__name__ == "UnifiedLM"
    assert model.config.architectures == ["UnifiedLM"]
    saved = load_file(fsdp / "fsdp2" / "checkpoints" / f"step_{STEPS:06d}" / "ema.safetensors")
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained.keys() == saved.keys()
    for name, weight in trained.items():
        assert torch.equal(weight, saved[name]), name


@pytest.mark.slow
def test_fsdp_gathers_layers_again_where_their_activations_are_computed_again(
    fsdp: Path, alone: Path
) -> None:
    assert_same_training(fsdp / "fsdp2 checkpointing", alone)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["frozen", "adapted"])
def test_fsdp_divides_a_backbone_that_is_frozen_or_adapted(fsdp: Path, kind: str) -> None:
    """An aligned model, and one into which the adapters are merged, are saved as DDP saves them."""
    assert_same_training(fsdp / f"fsdp2 {kind}", fsdp / f"ddp {kind}")
    assert (fsdp / f"fsdp2 {kind}" / "model" / ADAPTER).exists() == (kind == "adapted")


@pytest.mark.slow
def test_fsdp_in_bfloat16_stays_close_and_keeps_float32_weights(fsdp: Path) -> None:
    for one, two in zip(logged(fsdp / "fsdp2 bf16"), logged(fsdp / "ddp bf16"), strict=True):
        assert one["loss/main"] == pytest.approx(two["loss/main"], rel=0.02)
    newest = fsdp / "fsdp2 bf16" / "checkpoints" / f"step_{STEPS:06d}" / "weights.safetensors"
    assert {weight.dtype for weight in load_file(newest).values() if weight.is_floating_point()} == {
        torch.float32
    }


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_divided(
    fsdp: Path, tokenizer_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights, averages, moments, schedule; the data begin anew."""
    with pytest.raises(TrainingInterrupted):
        lm_devices.run_lm(tmp_path / "one", tokenizer_directory, lm_devices.StoppingTask, accumulation=WORLD)
    resumed = tmp_path / "resumed"
    shutil.copytree(fsdp / "stopped", resumed)
    for path in (tmp_path / "one", resumed):
        lm_devices.run_lm(path, tokenizer_directory, accumulation=WORLD)
    assert (
        f"going on from step {STOP} of {STEPS}, processes: 1 where there were 2;" in capsys.readouterr().out
    )
    assert_same_training(resumed, tmp_path / "one")
