"""Every kind of quantiser keeps the contract of the seam, alone and in a tower; the library's stay the library's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tower import IMAGE_SIZE, batch_of, tiny_task, tiny_tower
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, SiglipModel
from vector_quantize_pytorch import ResidualFSQ, ResidualLFQ, ResidualSimVQ

from vilau_common.config import load_config
from vilau_common.errors import UserError
from vilau_common.training.task import check_parameter_groups
from vilau_vision_tower.quantizer import (
    QUANTIZER_CONFIGS,
    Quantizer,
    build_quantizer,
    library,
    quantizer_config,
)
from vilau_vision_tower.tower import VisionTower, load_tower
from vilau_vision_tower.train import SCHEMA_GROUPS, TrainTowerConfig

WIDTH = 12
SETTINGS: dict[str, dict[str, Any]] = {
    "rq": {"kind": "rq", "codebook_size": 16, "depth": 3},
    "rq learned": {"kind": "rq", "codebook_size": 16, "depth": 3, "codebook_update": "gradient"},
    "rq k-means": {"kind": "rq", "codebook_size": 16, "depth": 3, "kmeans_iterations": 2},
    "fsq": {"kind": "fsq", "levels": [8, 5, 5], "depth": 3},
    "fsq, one depth": {"kind": "fsq", "levels": [3, 2], "depth": 1},
    "lfq": {"kind": "lfq", "codebook_size": 32, "depth": 3},
    "simvq": {"kind": "simvq", "codebook_size": 16, "depth": 3},
    "simvq, narrow": {"kind": "simvq", "codebook_size": 16, "depth": 3, "code_dim": 5},
}
LIBRARY = {name: settings for name, settings in SETTINGS.items() if settings["kind"] != "rq"}


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS.keys())
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture(params=LIBRARY.values(), ids=LIBRARY.keys())
def library_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def make(settings: dict[str, Any], width: int = WIDTH) -> Quantizer:
    """A quantiser in evaluation mode that has seen a batch."""
    quantizer = build_quantizer(quantizer_config(settings), width).train()
    quantizer(torch.randn(4, 50, width))
    return quantizer.eval()


def test_codes_and_features_are_those_of_the_seam(settings: dict[str, Any]) -> None:
    quantizer, z = make(settings), 2 * torch.randn(2, 3, 4, WIDTH)
    output = quantizer(z)
    assert output.codes.dtype == torch.int64
    assert output.codes.shape == (2, 3, 4, settings["depth"])
    assert 0 <= output.codes.min() <= output.codes.max() < quantizer.codebook_size
    assert output.z_q.shape == z.shape
    assert output.commitment.shape == output.codebook.shape == ()


def test_embeddings_depend_on_the_code_alone_and_sum_up_to_the_features(settings: dict[str, Any]) -> None:
    quantizer = make(settings)
    output = quantizer(2 * torch.randn(2, 3, 4, WIDTH))
    embeddings = quantizer.embed(output.codes)
    assert embeddings.shape == (2, 3, 4, quantizer.depth, quantizer.code_width)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(quantizer.project_out(embeddings.sum(dim=-2)), output.z_q)
    torch.testing.assert_close(quantizer.dequantize(output.codes), output.z_q)
    torch.testing.assert_close(quantizer.embed(output.codes[1, 2]), embeddings[1, 2])
    every = torch.arange(quantizer.codebook_size).unsqueeze(-1).expand(-1, quantizer.depth)
    rows = quantizer.embed(every)  # [K, D, C]
    for depth in range(quantizer.depth):
        torch.testing.assert_close(embeddings[..., depth, :], rows[output.codes[..., depth], depth])
        assert torch.equal(quantizer.embed_depth(output.codes[..., depth], depth), embeddings[..., depth, :])
        distinct = torch.unique(rows[:, depth], dim=0)
        assert len(distinct) == quantizer.codebook_size, "no two codes mean the same"


def test_each_depth_brings_the_features_nearer(library_settings: dict[str, Any]) -> None:
    settings = library_settings
    quantizer, z = make(settings), 0.5 * torch.randn(200, WIDTH)
    latent = quantizer.project_in(z)
    sums = quantizer.embed(quantizer(z).codes).cumsum(dim=-2)
    if settings["kind"] == "fsq":  # it bounds features first
        latent = bounded(latent, settings["levels"])
    errors = (latent.unsqueeze(-2) - sums).square().mean(dim=(0, 2)).tolist()
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == 1 or errors[-1] < 0.9 * errors[0]


def bounded(latent: Tensor, levels: list[int]) -> Tensor:
    limit = 1 + 1 / (torch.tensor(levels) - 1)
    return (latent / limit).tanh() * limit


def test_autocast_changes_no_code(settings: dict[str, Any]) -> None:
    quantizer, z = make(settings), torch.randn(500, WIDTH)
    quantizer.project_in = nn.Identity()  # which autocast may round
    z = torch.randn(500, quantizer.code_width)
    codes = quantizer(z).codes
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(z).codes, codes)


def test_gradient_passes_straight_through_once(settings: dict[str, Any]) -> None:
    """Not once for every depth, as the library's own."""
    quantizer = make(settings).train()
    quantizer.project_in = quantizer.project_out = nn.Identity()
    z = (0.1 * torch.randn(5, quantizer.code_width)).requires_grad_()
    gradient = torch.randn_like(z)
    quantizer(z).z_q.backward(gradient)
    expected = gradient
    if settings["kind"] == "fsq":
        other = z.detach().clone().requires_grad_()
        bounded(other, settings["levels"]).backward(gradient)
        expected = other.grad
    torch.testing.assert_close(z.grad, expected)


def test_equals_the_librarys_own(library_settings: dict[str, Any]) -> None:
    quantizer = make(library_settings)
    own: dict[str, Any] = {"dim": quantizer.code_width, "num_quantizers": quantizer.depth}
    if library_settings["kind"] == "fsq":
        oracle: nn.Module = ResidualFSQ(levels=library_settings["levels"], **own)
    else:
        kind = {"lfq": ResidualLFQ, "simvq": ResidualSimVQ}[library_settings["kind"]]
        oracle = kind(codebook_size=library_settings["codebook_size"], **own)
    state = quantizer.library.state_dict()
    oracle.load_state_dict({name: state[name] for name in oracle.state_dict()})
    z = torch.randn(2, 30, WIDTH)
    quantized, codes, *_ = oracle.eval()(quantizer.project_in(z))
    output = quantizer(z)
    assert torch.equal(output.codes, codes.long())
    torch.testing.assert_close(output.z_q, quantizer.project_out(quantized))


def test_losses_of_simvq_are_those_of_its_paper() -> None:
    quantizer = make(SETTINGS["simvq"])
    z = torch.randn(30, WIDTH, requires_grad=True)
    output = quantizer(z)
    residual, codebook, commitment = z, torch.zeros(()), torch.zeros(())
    for depth in range(3):
        embedding = quantizer.embed(output.codes)[..., depth, :]
        codebook = codebook + (residual.detach() - embedding).square().mean() / 3
        residual = residual - embedding.detach()
        commitment = commitment + residual.square().mean() / 3
    torch.testing.assert_close(output.codebook, codebook)
    torch.testing.assert_close(output.commitment, commitment)
    weights = [layer.code_transform.weight for layer in quantizer.library.layers]
    torch.testing.assert_close(
        torch.autograd.grad(output.codebook, weights), torch.autograd.grad(codebook, weights)
    )
    torch.testing.assert_close(torch.autograd.grad(output.commitment, z), torch.autograd.grad(commitment, z))


def test_lfq_rewards_sure_codes_and_a_varied_batch() -> None:
    quantizer = build_quantizer(
        quantizer_config({"kind": "lfq", "codebook_size": 4, "depth": 1, "entropy_weight": 0.5}), 2
    ).train()
    quantizer.project_in = nn.Identity()
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    varied, same = quantizer(corners).codebook, quantizer(corners[:1].expand(4, 2)).codebook
    unsure = quantizer(1e-4 * corners).codebook
    assert varied.item() == pytest.approx(-0.5 * torch.tensor(4.0).log().item(), abs=1e-3)
    assert same.item() == pytest.approx(0.0, abs=1e-3)
    assert unsure.item() == pytest.approx(0.0, abs=1e-2)


def test_lfq_is_refused_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = make(SETTINGS["lfq"])
    monkeypatch.setattr(library.distributed, "world_size", lambda: 2)
    quantizer(torch.randn(5, WIDTH))  # evaluation may be shared out
    with pytest.raises(UserError, match="kind=lfq trains in one process only"):
        quantizer.train()(torch.randn(5, WIDTH))


def test_simvq_is_frozen_to_the_same_codes_everywhere() -> None:
    """Ranks draw random numbers of their own, and nothing sends buffers around."""
    first, second = (build_quantizer(quantizer_config(SETTINGS["simvq"]), WIDTH) for _ in range(2))
    codebooks = [layer.frozen_codebook for layer in first.library.layers]
    for one, other in zip(codebooks, second.library.layers, strict=True):
        assert torch.equal(one, other.frozen_codebook)
    assert not torch.equal(codebooks[0], codebooks[1])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "fsq", "levels": [8, 1]}, r"quantizer.levels are \[8, 1\], but a channel has at least 2"),
        ({"kind": "fsq", "levels": []}, "quantizer.levels is empty"),
        ({"kind": "fsq", "levels": [64, 64, 64]}, "quantizer.levels' product is 262144"),
        ({"kind": "lfq", "codebook_size": 24}, "quantizer.codebook_size is 24, .* give a power of 2"),
        ({"kind": "lfq", "codebook_size": 1}, "quantizer.codebook_size is 1"),
        ({"kind": "simvq", "codebook_size": 65_537}, "quantizer.codebook_size is 65537"),
        ({"kind": "simvq", "code_dim": 0}, "quantizer.code_dim is 0"),
        ({"kind": "fsq", "depth": 17}, "quantizer.depth is 17"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_quantizer(quantizer_config(settings), WIDTH)


@pytest.fixture
def any_tower(settings: dict[str, Any], clip: SiglipModel) -> VisionTower:
    tower = tiny_tower(clip, **settings)
    with torch.no_grad():
        tower.train()(torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE))
    return tower.eval()


@torch.no_grad()
def test_a_tower_of_any_kind_is_saved_and_loaded(any_tower: VisionTower, tmp_path: Path) -> None:
    images = torch.rand(3, 3, IMAGE_SIZE, IMAGE_SIZE) * 2 - 1
    any_tower.save_pretrained(tmp_path / "model")
    loaded = load_tower(tmp_path)
    assert loaded.config.quantizer_config == any_tower.config.quantizer_config
    codes = any_tower.encode(images)
    assert codes.shape == (3, *any_tower.grid, any_tower.depth)
    assert torch.equal(loaded.encode(images), codes)
    torch.testing.assert_close(loaded.embed_codes(codes), any_tower.embed_codes(codes))
    torch.testing.assert_close(loaded.decode(codes), any_tower.decode(codes))
    output = any_tower(images)
    torch.testing.assert_close(output.reconstruction.clamp(-1, 1), any_tower.decode(codes))
    torch.testing.assert_close(
        any_tower.embed_codes(codes), any_tower.quantizer.embed(output.codes), rtol=0, atol=0
    )


def test_a_tower_of_any_kind_is_trained_whole(
    any_tower: VisionTower, clip: SiglipModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    task = tiny_task(any_tower, clip, tokenizer)
    task.train_mode()
    check_parameter_groups(task.network, task.parameter_groups())
    output = task.training_step(task.network, batch_of(5, 1), 0)
    output.losses["main"].backward()
    without = [name for name, weight in any_tower.named_parameters() if weight.grad is None]
    assert not without
    assert set(output.metrics) >= {"loss/commitment", "loss/codebook"}


def test_the_codebook_loss_has_its_own_weight(clip: SiglipModel, tokenizer: PreTrainedTokenizerFast) -> None:
    tower = tiny_tower(clip, **SETTINGS["rq learned"])
    totals = []
    for weight in (0.0, 2.0):
        task = tiny_task(tower, clip, tokenizer, codebook=weight)
        output = task.training_step(task.network, batch_of(5, 1), 0)
        totals.append(output.losses["main"])
    assert output.metrics["loss/codebook"] > 0.1
    torch.testing.assert_close(totals[1] - totals[0], 2 * output.metrics["loss/codebook"])


def test_a_tower_of_any_kind_is_built_on_the_meta_device(settings: dict[str, Any], clip: SiglipModel) -> None:
    config = tiny_tower(clip, **settings).config
    with torch.device("meta"):
        tower = VisionTower(config)
    assert all(weight.is_meta for weight in tower.parameters())


@pytest.mark.parametrize("kind", QUANTIZER_CONFIGS)
@pytest.mark.parametrize("experiment", ["scenes/tower", "easy_vqa/tower"])
def test_every_kind_can_be_chosen_for_an_experiment(kind: str, experiment: str) -> None:
    overrides = [f"experiment={experiment}", f"tower/quantizer={kind}", "tower.quantizer.depth=2"]
    config = load_config("train_tower", overrides, TrainTowerConfig, groups=SCHEMA_GROUPS)
    assert type(config.tower.quantizer) is QUANTIZER_CONFIGS[kind]
    assert config.tower.quantizer == QUANTIZER_CONFIGS[kind](depth=2)


def test_a_tower_saved_before_there_were_kinds_has_a_residual_quantiser() -> None:
    config = quantizer_config({"codebook_size": 8, "depth": 2, "code_dim": None})
    assert config == QUANTIZER_CONFIGS["rq"](codebook_size=8, depth=2)
