"""What the residual quantiser computes: codes, embeddings, gradient and commitment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_tower import fill_codebooks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vector_quantize_pytorch import ResidualVQ

from vilau_common.errors import UserError
from vilau_vision_tower.quantizer import (
    QuantizerConfig,
    ResidualQuantizer,
    build_quantizer,
    nearest_code,
    quantizer_config,
    search,
)
from vilau_vision_tower.quantizer.kinds import residual_quantizer

WIDTH = 6
SETTINGS = [
    pytest.param(
        QuantizerConfig(
            codebook_size=size, depth=depth, shared_codebook=shared, code_dim=dim, codebook_update=update
        ),
        id=name,
    )
    for name, size, depth, shared, dim, update in [
        ("separate", 16, 4, False, None, "ema"),
        ("shared", 16, 4, True, None, "ema"),
        ("one depth", 5, 1, False, None, "ema"),
        ("two codes", 2, 7, False, None, "ema"),
        ("deepest", 3, 16, False, None, "ema"),
        ("narrow", 16, 3, False, 3, "ema"),
        ("wide, shared", 16, 3, True, 9, "ema"),
        ("learned", 16, 4, False, None, "gradient"),
        ("learned, narrow, shared", 16, 4, True, 3, "gradient"),
    ]
]


def random_quantizer(config: QuantizerConfig) -> ResidualQuantizer:
    quantizer = residual_quantizer(config, WIDTH).eval()
    fill_codebooks(quantizer)
    return quantizer


def reference(quantizer: ResidualQuantizer, latent: Tensor) -> tuple[Tensor, Tensor, float]:
    """Codes [N, D], z_q [N, C] and commitment of latents [N, C]: the equations, one number at a time."""
    config = quantizer.config
    codes, sums, commitment = [], [], 0.0
    for vector in latent.double():
        residual, row = vector.clone(), []
        for depth in range(config.depth):
            book = quantizer.codebooks[0 if config.shared_codebook else depth].detach().double()
            distances = [float((residual - code).square().sum()) for code in book]
            row.append(distances.index(min(distances)))
            residual = residual - book[row[-1]]
            commitment += float(residual.square().mean()) / (config.depth * len(latent))
        codes.append(row)
        sums.append(vector - residual)
    return torch.tensor(codes), torch.stack(sums).float(), commitment


@pytest.mark.parametrize("config", SETTINGS)
def test_equals_the_equations(config: QuantizerConfig) -> None:
    quantizer = random_quantizer(config)
    z = torch.randn(2, 3, 4, WIDTH)
    output = quantizer(z)
    codes, sums, commitment = reference(
        quantizer, quantizer.project_in(z).reshape(-1, quantizer.code_width).detach()
    )
    assert torch.equal(output.codes, codes.view(2, 3, 4, config.depth))
    torch.testing.assert_close(output.z_q, quantizer.project_out(sums).view_as(z))
    assert output.commitment.item() == pytest.approx(commitment, rel=1e-5)


@pytest.mark.parametrize(
    ("size", "depth", "width", "positions"), [(16, 4, 6, 50), (1024, 4, 32, 2048), (1024, 1, 6, 3000)]
)
@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_equals_vector_quantize_pytorch(
    shared: bool, size: int, depth: int, width: int, positions: int
) -> None:
    oracle = ResidualVQ(
        dim=width, num_quantizers=depth, codebook_size=size, shared_codebook=shared, rotation_trick=False
    ).eval()
    for layer in oracle.layers:  # its own first codes are so small that float32 distances tie
        layer.codebook = 0.5 * torch.randn(size, width)
    config = QuantizerConfig(codebook_size=size, depth=depth, shared_codebook=shared)
    quantizer = residual_quantizer(config, width).eval()
    quantizer.set_codebooks(oracle.codebooks[:1] if shared else oracle.codebooks)
    z = 0.3 * torch.randn(2, positions, width)
    expected, codes, _ = oracle(z)
    output = quantizer(z)
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(output.z_q, expected)


@pytest.mark.parametrize("config", SETTINGS)
def test_codes_are_whole_numbers_in_range(config: QuantizerConfig) -> None:
    quantizer = random_quantizer(config)
    output = quantizer(100 * torch.randn(2, 3, 4, WIDTH))
    assert output.codes.dtype == torch.int64
    assert output.codes.shape == (2, 3, 4, config.depth)
    assert output.z_q.shape == (2, 3, 4, WIDTH)
    assert output.codes.min() >= 0
    assert output.codes.max() < config.codebook_size
    assert len(quantizer.codebooks) == (1 if config.shared_codebook else config.depth)


@pytest.mark.parametrize("config", SETTINGS)
def test_codes_alone_give_the_features(config: QuantizerConfig) -> None:
    """What the LM embeds sums up to what the tower's own two ends read."""
    quantizer = random_quantizer(config)
    output = quantizer(torch.randn(2, 3, 4, WIDTH))
    embeddings = quantizer.embed(output.codes)
    assert embeddings.shape == (2, 3, 4, config.depth, quantizer.code_width)
    torch.testing.assert_close(quantizer.project_out(embeddings.sum(dim=-2)), output.z_q)
    torch.testing.assert_close(quantizer.dequantize(output.codes), output.z_q)


def test_each_depth_reads_its_own_codebook() -> None:
    quantizer = random_quantizer(QuantizerConfig(codebook_size=4, depth=3))
    codes = torch.tensor([[1, 1, 2]])
    expected = torch.stack([quantizer.codebooks[0, 1], quantizer.codebooks[1, 1], quantizer.codebooks[2, 2]])
    assert torch.equal(quantizer.embed(codes)[0], expected)


def test_gradient_passes_straight_through() -> None:
    """dz_q/dz is 1, exactly."""
    quantizer = random_quantizer(QuantizerConfig(codebook_size=16, depth=4))
    z, gradient = torch.randn(5, WIDTH, requires_grad=True), torch.randn(5, WIDTH)
    quantizer(z).z_q.backward(gradient)
    assert torch.equal(z.grad, gradient)


def test_gradient_passes_straight_through_the_narrow_codes() -> None:
    """With projections it is theirs, as if nothing stood between them."""
    quantizer = random_quantizer(QuantizerConfig(codebook_size=16, depth=4, code_dim=3))
    z, gradient = torch.randn(5, WIDTH, requires_grad=True), torch.randn(5, WIDTH)
    quantizer(z).z_q.backward(gradient)
    expected = gradient @ quantizer.project_out.weight @ quantizer.project_in.weight
    torch.testing.assert_close(z.grad, expected)
    assert quantizer.project_in.weight.grad.abs().sum() > 0


def test_commitment_draws_features_to_every_partial_sum() -> None:
    quantizer = random_quantizer(QuantizerConfig(codebook_size=16, depth=4))
    z = torch.randn(5, WIDTH, requires_grad=True)
    output = quantizer(z)
    output.commitment.backward()
    partial_sums = quantizer.embed(output.codes).cumsum(dim=-2)
    expected = 2 * (z.detach().unsqueeze(-2) - partial_sums).mean(dim=-2) / z.numel()
    torch.testing.assert_close(z.grad, expected)


def test_moving_averages_are_no_parameters() -> None:
    quantizer = build_quantizer(QuantizerConfig(codebook_size=16), WIDTH)
    assert not list(quantizer.parameters())
    assert {"codebooks", "counts", "sums", "started"} <= quantizer.state_dict().keys()


def test_autocast_changes_no_code() -> None:
    quantizer = random_quantizer(QuantizerConfig(codebook_size=256, depth=4))
    z = torch.randn(500, WIDTH)
    codes = quantizer(z).codes
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(z).codes, codes)


@pytest.fixture
def reduced_precision() -> Iterator[None]:
    """As `training.matmul_precision=high` has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("reduced_precision")
def test_the_search_on_a_gpu_is_in_full_float32_and_on_a_cpu_as_it_is_set() -> None:
    for device, inside in (("cuda", "highest"), ("cpu", "high")):
        with search.full_float32(torch.device(device)):
            assert torch.get_float32_matmul_precision() == inside
        assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.usefixtures("reduced_precision")
def test_codes_on_a_gpu_are_the_cpus_where_tf32_is_allowed() -> None:
    """Near codes: TF32 would choose others for a tenth of the vectors."""
    vectors = torch.randn(4096, 64)
    codebook = 3 + 0.05 * torch.randn(1024, 64)
    exact = torch.cdist(vectors.double(), codebook.double()).argmin(dim=-1)
    found = nearest_code(vectors.cuda(), codebook.cuda()).cpu()
    assert (found == exact).double().mean() > 0.98


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"codebook_size": 1}, "quantizer.codebook_size is 1, but a codebook has 2 to 65,536 codes"),
        ({"codebook_size": 65_537}, "quantizer.codebook_size is 65537"),
        ({"depth": 0}, "quantizer.depth is 0, but each position has 1 to 16 codes"),
        ({"depth": 17}, "quantizer.depth is 17"),
        ({"code_dim": 0}, "quantizer.code_dim is 0"),
        ({"ema_decay": 1.0}, "quantizer.ema_decay is 1.0"),
        ({"ema_decay": math.nan}, "quantizer.ema_decay is nan"),
        ({"restart_below": -1.0}, "quantizer.restart_below is -1.0"),
        ({"restart_below": 1.0}, "quantizer.restart_below is 1.0, .* and would restart at every step"),
        ({"restart_below": math.nan}, "quantizer.restart_below is nan"),
        ({"kmeans_iterations": -1}, "quantizer.kmeans_iterations is -1"),
        (
            {"codebook_update": "adam"},
            "quantizer.codebook_update is 'adam'; the choices are ema and gradient",
        ),
        ({"kind": "vq"}, "quantizer.kind is 'vq'; the quantisers are rq, fsq, lfq, simvq"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_quantizer(quantizer_config(settings), WIDTH)


def test_the_largest_sizes_are_accepted() -> None:
    config = QuantizerConfig(codebook_size=65_536, depth=16, code_dim=1)
    with torch.device("meta"):
        quantizer = build_quantizer(config, WIDTH)
    assert (quantizer.codebook_size, quantizer.depth) == (65_536, 16)


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation inside the block gives back."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


@pytest.mark.parametrize("block", [1, 700, 64 * 13, 10**6])
def test_searching_in_blocks_finds_the_same_codes(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CPU_BLOCK_DISTANCES", block)
    vectors, codebook = torch.randn(301, 5), torch.randn(64, 5)
    expected = torch.cdist(vectors.double(), codebook.double()).argmin(dim=-1)
    with LargestTensor() as largest:
        codes = nearest_code(vectors, codebook)
    assert torch.equal(codes, expected)
    assert largest.numel <= max(block, 301 * 5)


def test_of_no_vectors_there_are_no_codes() -> None:
    assert nearest_code(torch.zeros(0, 5), torch.randn(64, 5)).shape == (0,)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_training_step_holds_no_table_of_all_distances(
    update: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = 2**14
    monkeypatch.setattr(search, "CPU_BLOCK_DISTANCES", block)
    config = QuantizerConfig(codebook_size=512, depth=2, codebook_update=update, kmeans_iterations=1)
    quantizer = residual_quantizer(config, WIDTH).train()
    z = torch.randn(512, WIDTH, requires_grad=True)
    with LargestTensor() as largest:
        for _ in range(2):
            output = quantizer(z)
            (output.z_q.sum() + output.commitment + output.codebook).backward()
    assert largest.numel == block


def test_the_codebook_loss_draws_codes_to_the_features() -> None:
    """And the features not to the codes: that is the commitment's part."""
    config = QuantizerConfig(codebook_size=4, depth=3, codebook_update="gradient")
    quantizer, z = random_quantizer(config), torch.randn(50, WIDTH, requires_grad=True)
    output = quantizer(z)
    output.codebook.backward()
    assert z.grad is None
    codebooks = quantizer.codebooks.detach().clone().requires_grad_()
    partial = torch.zeros(50, WIDTH)
    loss = torch.zeros(())
    for depth in range(3):
        partial = partial + codebooks[depth][output.codes[:, depth]]
        loss = loss + (z.detach() - partial).square().mean() / 3
    loss.backward()
    torch.testing.assert_close(output.codebook, loss)
    torch.testing.assert_close(quantizer.codebooks.grad, codebooks.grad)


def test_moving_averages_have_no_codebook_loss() -> None:
    output = random_quantizer(QuantizerConfig(codebook_size=4, depth=3))(torch.randn(50, WIDTH))
    assert output.codebook == 0
    assert not output.codebook.requires_grad
