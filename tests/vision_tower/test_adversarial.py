"""The discriminator and the losses of both sides, against pix2pix's numbers and VQGAN's formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_tower import DISCRIMINATOR
from torch import nn

from vilau_common.errors import UserError
from vilau_vision_tower.discriminator import DiscriminatorConfig, PatchDiscriminator
from vilau_vision_tower.losses import AdversarialConfig, AdversarialLoss

SIZE = 32


def loss_of(**settings: object) -> AdversarialLoss:
    config = AdversarialConfig(weight=1.0, discriminator=DISCRIMINATOR, **settings)
    return AdversarialLoss(config, SIZE)


def test_it_is_pix2pixs_in_size() -> None:
    """30x30 logits for 256 pixels. CycleGAN's has 2,764,737 weights, with 896 biases where norms have 1,792."""
    with torch.device("meta"):
        discriminator = PatchDiscriminator(DiscriminatorConfig(), 256)
        assert discriminator(torch.zeros(2, 3, 256, 256)).shape == (2, 30, 30)
    assert sum(weight.numel() for weight in discriminator.parameters()) == 2_764_737 - 896 + 1792


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch(layers: int, side: int) -> None:
    config = DiscriminatorConfig(channels=2, layers=layers, groups=1)
    discriminator = PatchDiscriminator(config, 128)
    for module in discriminator.modules():
        if isinstance(module, nn.GroupNorm):  # its statistics are taken over all places
            module.forward = lambda x: x  # type: ignore[method-assign]
    images = torch.rand(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    logits = discriminator.double()(images)
    logits[0, logits.shape[1] // 2, logits.shape[2] // 2].backward()
    assert images.grad is not None
    seen = images.grad.abs().sum(dim=(0, 1)) > 0
    assert [int(seen.any(dim=dim).sum()) for dim in (0, 1)] == [side, side]


def test_a_pictures_logits_depend_on_no_other_picture() -> None:
    """As BatchNorm's would: on the fakes beside it, and on how many processes share a batch."""
    discriminator, images = PatchDiscriminator(DISCRIMINATOR, SIZE).train(), torch.randn(4, 3, SIZE, SIZE)
    torch.testing.assert_close(discriminator(images)[1:2], discriminator(images[1:2]))


def test_both_sides_are_vqgans_hinge() -> None:
    loss = loss_of()
    images, fakes = torch.randn(3, 3, SIZE, SIZE), torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        loss.discriminator.output.weight.mul_(30)  # logits on both sides of the hinge
    real, fake = loss.discriminator(images), loss.discriminator(fakes)
    assert real.min() < -1 < 1 < real.max()
    expected = 0.5 * (1 - real).clamp(min=0).mean() + 0.5 * (1 + fake).clamp(min=0).mean()
    torch.testing.assert_close(loss.of_discriminator(images, fakes), expected)
    torch.testing.assert_close(loss.of_tower(fakes), -fake.mean())


def test_neither_side_reaches_the_other() -> None:
    loss, images = loss_of(), torch.randn(2, 3, SIZE, SIZE)
    fakes = torch.randn(2, 3, SIZE, SIZE, requires_grad=True)
    loss.of_tower(fakes).backward()
    assert fakes.grad is not None and fakes.grad.any()
    assert all(weight.grad is None for weight in loss.parameters())
    fakes.grad = None
    loss.of_discriminator(images, fakes).backward()
    assert fakes.grad is None
    assert all(weight.grad is not None for weight in loss.parameters())


def test_learning_tells_pictures_from_reconstructions() -> None:
    """Sharp ones from blurred ones."""
    loss, images = loss_of(), torch.randn(8, 3, SIZE, SIZE)
    fakes = F.avg_pool2d(images, 5, stride=1, padding=2)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss.of_discriminator(images, fakes).backward()
        optimizer.step()
    assert loss.discriminator(images).mean() > 0.5
    assert loss.discriminator(fakes).mean() < -0.5


def test_the_scale_is_the_ratio_of_gradient_norms() -> None:
    last = torch.tensor([3.0, 4.0], requires_grad=True)
    loss = loss_of(adaptive=True)
    reconstruction, adversarial = last.square().sum(), 0.5 * last.sum()
    scale = loss.scale(reconstruction, adversarial, last)
    assert scale.item() == pytest.approx(10 / (0.5 * 2**0.5 + 1e-4))
    assert not scale.requires_grad
    assert loss.scale(reconstruction, 0 * adversarial, last).item() == 1e4
    assert loss_of().scale(reconstruction, adversarial, last).item() == 1.0
    (reconstruction + adversarial).backward()  # the graphs are still there


def test_what_does_not_fit_is_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match="discriminator.layers is 4, which leaves nothing of 32 pixels"):
        PatchDiscriminator(DiscriminatorConfig(layers=4), SIZE)
    with pytest.raises(UserError, match="discriminator.groups is 48, which does not divide the 64 channels"):
        DiscriminatorConfig(groups=48)
    with pytest.raises(UserError, match="at least 1 is needed"):
        DiscriminatorConfig(layers=0)
    with pytest.raises(UserError, match="weight and start_step must be 0 or more, not -1.0 and 0"):
        AdversarialConfig(weight=-1.0)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_picture_that_fits_gives_one_logit(layers: int) -> None:
    size = 3 * 2**layers
    config = DiscriminatorConfig(channels=2, layers=layers, groups=1)
    assert PatchDiscriminator(config, size)(torch.rand(1, 3, size, size)).shape == (1, 1, 1)
    with pytest.raises(UserError, match="leaves nothing"):
        PatchDiscriminator(config, size - 1)
