"""What the residual quantiser computes: codes, embeddings, gradient and commitment."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_tower import fill_codebooks
from torch import Tensor
from vector_quantize_pytorch import ResidualVQ

from vilau_common.errors import UserError
from vilau_vision_tower.quantizer import QuantizerConfig, ResidualQuantizer

WIDTH = 6
SETTINGS = [
    pytest.param(
        QuantizerConfig(codebook_size=size, depth=depth, shared_codebook=shared, code_dim=dim), id=name
    )
    for name, size, depth, shared, dim in [
        ("separate", 16, 4, False, None),
        ("shared", 16, 4, True, None),
        ("one depth", 5, 1, False, None),
        ("two codes", 2, 7, False, None),
        ("narrow", 16, 3, False, 3),
        ("wide, shared", 16, 3, True, 9),
    ]
]


def random_quantizer(config: QuantizerConfig) -> ResidualQuantizer:
    quantizer = ResidualQuantizer(config, WIDTH).eval()
    fill_codebooks(quantizer)
    return quantizer


def reference(quantizer: ResidualQuantizer, latent: Tensor) -> tuple[Tensor, Tensor, float]:
    """Codes [N, D], z_q [N, C] and commitment of latents [N, C]: the equations, one number at a time."""
    config = quantizer.config
    codes, sums, commitment = [], [], 0.0
    for vector in latent.double():
        residual, row = vector.clone(), []
        for depth in range(config.depth):
            book = quantizer.codebooks[0 if config.shared_codebook else depth].double()
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


@pytest.mark.parametrize("shared", [False, True])
def test_equals_vector_quantize_pytorch(shared: bool) -> None:
    oracle = ResidualVQ(
        dim=WIDTH, num_quantizers=4, codebook_size=16, shared_codebook=shared, rotation_trick=False
    ).eval()
    quantizer = random_quantizer(QuantizerConfig(codebook_size=16, depth=4, shared_codebook=shared))
    quantizer.codebooks.copy_(oracle.codebooks[:1] if shared else oracle.codebooks)
    z = 0.3 * torch.randn(2, 50, WIDTH)
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


def test_codebooks_are_no_parameters() -> None:
    quantizer = ResidualQuantizer(QuantizerConfig(codebook_size=16), WIDTH)
    assert not list(quantizer.parameters())
    assert {"codebooks", "counts", "sums", "started"} <= quantizer.state_dict().keys()


def test_autocast_changes_no_code() -> None:
    quantizer = random_quantizer(QuantizerConfig(codebook_size=256, depth=4))
    z = torch.randn(500, WIDTH)
    codes = quantizer(z).codes
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(z).codes, codes)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"codebook_size": 1}, "quantizer.codebook_size is 1"),
        ({"depth": 0}, "quantizer.depth is 0"),
        ({"code_dim": 0}, "quantizer.code_dim is 0"),
        ({"ema_decay": 1.0}, "quantizer.ema_decay is 1.0"),
        ({"ema_decay": math.nan}, "quantizer.ema_decay is nan"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ResidualQuantizer(QuantizerConfig(**settings), WIDTH)
