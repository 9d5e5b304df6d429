"""Gradient checkpointing: the same gradients from fewer activations, of encoder and both decoders."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_tower import DECODER, IMAGE_SIZE, tiny_tower
from torch import Tensor
from transformers import SiglipModel

from vilau_vision_tower.decoder import ConvDecoderConfig, DecoderConfig
from vilau_vision_tower.tower import VisionTower

CONV = ConvDecoderConfig(
    latent_channels=4, channels=4, channel_multipliers=[1, 2, 2], residual_blocks=1, groups=2
)


@pytest.fixture(params=[DECODER, CONV], ids=["transformer", "conv"])
def pair(request: pytest.FixtureRequest, clip: SiglipModel) -> list[VisionTower]:
    """The same tower twice, the second one with checkpointing."""
    decoder: DecoderConfig = request.param
    plain = tiny_tower(clip, decoder, restart_below=0.0).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.activation_checkpointing_enable()
    return [plain, checkpointed]


def test_the_same_gradients_and_codebooks(pair: list[VisionTower]) -> None:
    images = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE) * 2 - 1
    plain, checkpointed = pair
    for tower in pair:
        output = tower(images)
        (output.reconstruction.square().mean() + output.embedding[:, 0].sum() + output.commitment).backward()
    others = dict(checkpointed.named_parameters())
    for name, weight in plain.named_parameters():
        assert weight.grad is not None, name
        assert torch.equal(others[name].grad, weight.grad), name
    assert torch.equal(checkpointed.quantizer.codebooks, plain.quantizer.codebooks), "moved once, not twice"


def test_fewer_activations_are_kept(pair: list[VisionTower]) -> None:
    """In encoder and decoder both."""
    images = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE) * 2 - 1
    kept: list[dict[str, int]] = []
    for tower in pair:
        seen: list[int] = []

        def count(tensor: Tensor, seen: list[int] = seen) -> Tensor:
            seen.append(tensor.numel())
            return tensor

        amounts = {}
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            z_q = tower.quantize(images).z_q
            amounts["encoder"] = sum(seen)
            seen.clear()
            tower.decoder(z_q.permute(0, 3, 1, 2))
            amounts["decoder"] = sum(seen)
        kept.append(amounts)
    for part in ("encoder", "decoder"):
        assert kept[1][part] < 0.6 * kept[0][part], part
