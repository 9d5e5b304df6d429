"""Contrastive losses against the formulas of CLIP and SigLIP as open_clip has them, and PSNR."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vilau_common.errors import UserError
from vilau_vision_tower.losses import ContrastiveConfig, ContrastiveLoss, psnr

SIZE, WIDTH, SCALE = 5, 8, 7.0
NONE = torch.zeros(0, WIDTH)


def unit(rows: int) -> Tensor:
    return F.normalize(torch.randn(rows, WIDTH), dim=-1)


def different(rows: int) -> Tensor:
    """Token ids of so many texts of which no two are equal."""
    return torch.stack([torch.arange(rows), torch.zeros(rows, dtype=torch.int64)], dim=1)


def softmax_reference(images: Tensor, texts: Tensor, negatives: Tensor) -> Tensor:
    """open_clip's ClipLoss; negatives are more texts for each image, and no more images for any text."""
    total = torch.zeros(())
    for i in range(SIZE):
        of_image = torch.stack([SCALE * images[i] @ text for text in (*texts, *negatives)])
        of_text = torch.stack([SCALE * image @ texts[i] for image in images])
        total += (of_image.logsumexp(0) - of_image[i] + of_text.logsumexp(0) - of_text[i]) / 2
    return total / SIZE


def sigmoid_reference(images: Tensor, texts: Tensor, negatives: Tensor, bias: float) -> Tensor:
    """open_clip's SigLipLoss: every pair is asked about, and the sum divided by the number of images."""
    total = torch.zeros(())
    for i in range(SIZE):
        for j, text in enumerate([*texts, *negatives]):
            logit = SCALE * images[i] @ text + bias
            probability = torch.sigmoid(logit if i == j else -logit)
            total -= probability.log()
    return total / SIZE


@pytest.mark.parametrize("negatives", [0, 7])
def test_softmax_is_open_clips(negatives: int) -> None:
    loss = ContrastiveLoss(ContrastiveConfig(kind="softmax", scale=SCALE))
    vectors = unit(SIZE), unit(SIZE), unit(negatives)
    torch.testing.assert_close(loss(*vectors, different(SIZE + negatives)), softmax_reference(*vectors))


@pytest.mark.parametrize("negatives", [0, 7])
def test_sigmoid_is_open_clips(negatives: int) -> None:
    loss = ContrastiveLoss(ContrastiveConfig(kind="sigmoid", scale=SCALE, bias=-2.0))
    vectors = unit(SIZE), unit(SIZE), unit(negatives)
    torch.testing.assert_close(
        loss(*vectors, different(SIZE + negatives)), sigmoid_reference(*vectors, bias=-2.0)
    )


def test_negatives_only_add_columns() -> None:
    """A negative far from every image changes nothing for softmax, and a near one only makes it harder."""
    loss = ContrastiveLoss(ContrastiveConfig(kind="softmax", scale=100.0))
    direction = F.normalize(torch.ones(1, WIDTH), dim=-1)
    images = F.normalize(direction + 0.3 * torch.randn(SIZE, WIDTH), dim=-1)
    alone = loss(images, images, NONE, different(SIZE))
    torch.testing.assert_close(loss(images, images, -direction, different(SIZE + 1)), alone)
    assert loss(images, images, images[:1], different(SIZE + 1)) > alone + 0.05


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_an_images_own_text_is_no_negative_of_it(kind: str) -> None:
    """Image 1 has image 0's text, and so has a negative: what they look like means nothing to each other."""
    loss = ContrastiveLoss(ContrastiveConfig(kind=kind, scale=SCALE, bias=0.0))
    images, texts, negatives = unit(SIZE), unit(SIZE), unit(2)
    texts[1], negatives[0] = texts[0], texts[0]
    ids = different(SIZE + 2)
    ids[1], ids[SIZE] = ids[0], ids[0]
    pairs = {(0, 1), (1, 0), (0, SIZE), (1, SIZE)}
    scores = SCALE * images @ torch.cat([texts, negatives]).T
    if kind == "softmax":
        kept = torch.tensor([[(i, j) not in pairs for j in range(SIZE + 2)] for i in range(SIZE)])
        by_image = [scores[i, kept[i]].logsumexp(0) - scores[i, i] for i in range(SIZE)]
        by_text = [scores[kept[:, i], i].logsumexp(0) - scores[i, i] for i in range(SIZE)]
        expected = (sum(by_image) + sum(by_text)) / (2 * SIZE)
    else:
        signed = [
            scores[i, j] if i == j else -scores[i, j]
            for i in range(SIZE)
            for j in range(SIZE + 2)
            if (i, j) not in pairs
        ]
        expected = -F.logsigmoid(torch.stack(signed)).sum() / SIZE
    torch.testing.assert_close(loss(images, texts, negatives, ids), expected)
    assert loss(images, texts, negatives, different(SIZE + 2)) > expected + 0.01


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_matching_pairs_are_rewarded(kind: str) -> None:
    loss, images = ContrastiveLoss(ContrastiveConfig(kind=kind)), unit(SIZE)
    ids = different(SIZE)
    assert loss(images, images, NONE, ids) < loss(images, images.roll(1, 0), NONE, ids)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_every_parameter_learns(kind: str) -> None:
    """One that no gradient reached would stop a training on several processes."""
    loss = ContrastiveLoss(ContrastiveConfig(kind=kind))
    loss(unit(SIZE), unit(SIZE), NONE, different(SIZE)).backward()
    assert {name for name, _ in loss.named_parameters()} == {"log_scale"} | (
        {"bias"} if kind == "sigmoid" else set()
    )
    assert all(weight.grad is not None for weight in loss.parameters())


def test_the_scale_is_capped_and_comes_back() -> None:
    capped, huge = (ContrastiveLoss(ContrastiveConfig(scale=scale)) for scale in (100.0, 1e6))
    vectors = unit(SIZE), unit(SIZE), NONE, different(SIZE)
    torch.testing.assert_close(huge(*vectors), capped(*vectors))
    huge(*vectors).backward()
    assert huge.log_scale.grad is not None and huge.log_scale.grad.abs() > 0


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_autocast_does_not_touch_the_logits(kind: str) -> None:
    loss = ContrastiveLoss(ContrastiveConfig(kind=kind, scale=100.0))
    vectors = unit(SIZE), unit(SIZE), unit(3), different(SIZE + 3)
    expected = loss(*vectors)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(*vectors), expected, rtol=1e-6, atol=1e-6)
        halves = [each.bfloat16() for each in vectors[:3]]
        assert loss(*halves, vectors[3]).dtype == torch.float32


def test_sigmoids_scale_is_not_capped() -> None:
    """SigLIP's released models have learned 110 and more."""
    loss = ContrastiveLoss(ContrastiveConfig(kind="sigmoid", scale=117.0, bias=-12.9))
    loss.cap_scale()
    assert loss.log_scale.exp().item() == pytest.approx(117.0)


def test_null_is_the_clips_own() -> None:
    null = ContrastiveConfig(kind=None, scale=None, bias=None)
    assert null.with_own(117.0, -12.9) == ContrastiveConfig(kind="sigmoid", scale=117.0, bias=-12.9)
    assert null.with_own(90.0, None) == ContrastiveConfig(kind="softmax", scale=90.0, bias=None)
    given = ContrastiveConfig(kind="softmax", scale=40.0, bias=-3.0)
    assert given.with_own(117.0, -12.9) == given
    with pytest.raises(UserError, match=r"contrastive.bias is null, .* this CLIP has none: set it"):
        ContrastiveConfig(kind="sigmoid", bias=None).with_own(90.0, None)
    for scratch in (null, ContrastiveConfig(scale=None), ContrastiveConfig(kind="sigmoid", bias=None)):
        with pytest.raises(UserError, match="a training from scratch needs values"):
            ContrastiveLoss(scratch)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"contrastive.kind is 'triplet'; the choices are softmax and sigmoid"
    ):
        ContrastiveLoss(ContrastiveConfig(kind="triplet"))


def test_psnr_of_known_errors() -> None:
    """Of a picture whose range is 2: an error of 0.2 everywhere is a tenth of it, 20 dB."""
    images = torch.rand(3, 3, 4, 4)
    errors = torch.tensor([0.2, 2.0, 0.02]).view(3, 1, 1, 1)
    signs = torch.where(torch.rand(3, 3, 4, 4) < 0.5, -1.0, 1.0)
    torch.testing.assert_close(psnr(images, images + signs * errors), torch.tensor([20.0, 0.0, 40.0]))
    assert psnr(images, images).tolist() == [math.inf] * 3


def test_psnr_is_taken_for_each_picture_apart() -> None:
    images, half = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    half[0, 0] = 0.3  # a third of the first picture's values
    assert psnr(images, half)[0].item() == pytest.approx(10 * math.log10(4 / 0.03), rel=1e-5)
    assert psnr(images, half)[1].item() == math.inf
