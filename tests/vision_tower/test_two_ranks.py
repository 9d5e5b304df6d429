"""Two processes under gloo: one codebook, one contrastive batch, one training."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
from torch import Tensor
from transformers import PreTrainedTokenizerFast

PATIENCE = 120.0  # seconds
Results = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def tokenizer_directory(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def together(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """What each of the two processes came to."""
    path = tmp_path_factory.mktemp("two")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vilau_vision_tower.train", "torch._dynamo"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children: list[Any] = [
        context.Process(target=two_ranks.child, args=(rank, port, tokenizer_directory, path))
        for rank in range(two_ranks.WORLD)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE)
        child.kill()
    assert [child.exitcode for child in children] == [0] * two_ranks.WORLD
    return [torch.load(path / f"{rank}.pt", weights_only=True) for rank in range(two_ranks.WORLD)]


@pytest.fixture(scope="module")
def alone(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What one process comes to on the joint batches."""
    torch.set_num_threads(1)
    return two_ranks.everything(0, 1, tokenizer_directory, tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("name", two_ranks.QUANTIZERS)
def test_codebooks_are_those_of_one_process_with_the_joint_batch(
    together: list[Results], alone: Results, name: str
) -> None:
    """And equal on all ranks; from the start on, and where codes restart. Both ranks' codes make the joint batch's."""
    first, second = (results[name] for results in together)
    assert first["codebooks after step 0"].abs().min() > 0
    for key, value in alone[name].items():
        if key.startswith("codes"):
            assert torch.equal(torch.cat([first[key], second[key]]), value), key
        else:
            assert torch.equal(first[key], second[key]), key
            torch.testing.assert_close(first[key], value, msg=f"{key} differs")


@pytest.mark.parametrize("name", two_ranks.QUANTIZERS)
def test_codes_restart_in_these_tests(alone: Results, name: str) -> None:
    """At every step but the first, where they start: their counts stand at the least there is."""
    config = two_ranks.QUANTIZERS[name]
    vectors = 40 * (config.depth if config.shared_codebook else 1)
    floor = config.restart_below * vectors / config.codebook_size
    for step in range(1, two_ranks.STEPS):
        assert (alone[name][f"counts after step {step}"] == floor).any()


@pytest.mark.parametrize("kind", two_ranks.KINDS)
@pytest.mark.parametrize("negatives", two_ranks.NEGATIVES)
def test_the_contrastive_loss_is_that_of_the_joint_batch(
    together: list[Results], alone: Results, kind: str, negatives: int
) -> None:
    """Gradients too, once averaged over the ranks as a training does."""
    name = f"loss {kind} {negatives}"
    joint, ranks = alone[name], [results[name] for results in together]
    for rank in ranks:
        torch.testing.assert_close(rank["loss"], joint["loss"])
    images = torch.cat([rank["images"] for rank in ranks]) / two_ranks.WORLD
    torch.testing.assert_close(images, joint["images"])
    for parameter in joint.keys() - {"loss", "images"}:
        mean = torch.stack([rank[parameter] for rank in ranks]).mean(dim=0)
        torch.testing.assert_close(mean, joint[parameter])


@pytest.mark.parametrize("name", two_ranks.TRAININGS)
def test_two_processes_train_as_one_on_the_joint_batch(
    together: list[Results], alone: Results, name: str
) -> None:
    first, second = (results[f"training {name}"] for results in together)
    for weight, value in alone[f"training {name}"].items():
        if weight in ("model.logit_scale", "model.logit_bias"):  # written by the one process that saves
            continue
        assert torch.equal(first[weight], second[weight]), weight
        torch.testing.assert_close(first[weight], value, rtol=1e-4, atol=1e-5, msg=weight)
