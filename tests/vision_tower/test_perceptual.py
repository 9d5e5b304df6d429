"""Perceptual distances: LPIPS from a local file against the package's own number, and the one in CLIP's features."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from types import SimpleNamespace

import lpips
import pytest
import torch
import torch.nn.functional as F
import torchvision
from tiny_tower import IMAGE_SIZE
from torch import Tensor, nn
from transformers import SiglipModel

from vilau_common.errors import UserError
from vilau_vision_tower.losses import ClipDistance, LpipsDistance, PerceptualConfig, build_perceptual
from vilau_vision_tower.tower import VisionTower

NETWORKS = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, IMAGE_SIZE, IMAGE_SIZE) * 2 - 1


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def trunk(network: str) -> nn.Module:
    """torchvision's network with random weights; the classifier, nine tenths of it, is only promised."""
    with torch.device("meta"):
        model = NETWORKS[network]()
    model.features.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for module in model.features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            nn.init.normal_(module.bias, std=0.1, generator=generator)
    return model


@pytest.fixture(scope="module")
def file(trunk: nn.Module, network: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / f"{network}.pth"
    torch.save({f"features.{name}": value for name, value in trunk.features.state_dict().items()}, path)
    return path


def test_lpips_from_a_file_is_the_packages(
    network: str, trunk: nn.Module, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = SimpleNamespace(**dict.fromkeys(("alexnet", "vgg16"), lambda pretrained: trunk))
    monkeypatch.setattr(lpips.pretrained_networks, "tv", stand_in)
    reference = lpips.LPIPS(net=network, verbose=False)
    images, others = pictures(), pictures()
    before = torch.get_rng_state()
    distance = build_perceptual(PerceptualConfig(kind="lpips", network=network, weights=str(file)), None)
    assert torch.equal(torch.get_rng_state(), before), "building it takes none of the run's random numbers"
    expected = reference(others, images)
    assert expected.min() > 0.01
    torch.testing.assert_close(distance(others, images), expected.mean())
    assert distance(images, images).item() == 0


def test_lpips_takes_the_copy_in_torchvisions_cache(
    file: Path, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}[network]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / name).symlink_to(file)
    others, images = pictures(), pictures()
    expected = LpipsDistance(network, str(file))(others, images)
    assert torch.equal(LpipsDistance(network)(others, images), expected)


def test_without_a_network_a_sentence_says_which_file_to_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    bring = f"bring it to {tmp_path / 'hub' / 'checkpoints' / 'vgg16-397923af.pth'}"
    for offline, why in (("1", "is needed, but HF_HUB_OFFLINE is set"), ("0", "cannot be downloaded (")):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        with pytest.raises(UserError) as caught:
            LpipsDistance("vgg")
        told = str(caught.value)
        assert told.startswith(f"https://download.pytorch.org/models/vgg16-397923af.pth {why}")
        remedy = "or name a local copy with loss.perceptual.weights=FILE, or take loss.perceptual.kind=clip"
        assert f"{bring}, {remedy}" in told


def test_files_that_do_not_fit_are_told_in_a_sentence(file: Path, network: str, tmp_path: Path) -> None:
    other = {"alex": "vgg", "vgg": "alex"}[network]
    with pytest.raises(UserError, match=rf"{file.name} (has no features|is of another network than {other})"):
        LpipsDistance(other, str(file))
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"loss.perceptual.weights: .*damaged.pth cannot be read as weights"):
        LpipsDistance(network, str(damaged))
    with pytest.raises(UserError, match=r"loss.perceptual.weights=nowhere.pth: there is no such file"):
        LpipsDistance(network, "nowhere.pth")


def test_clip_distance_is_that_of_what_its_layers_read(clip: SiglipModel, tower: VisionTower) -> None:
    """Layers by number, against transformers' own hidden states."""
    images, others = pictures(), pictures()
    distance = ClipDistance(tower.encoder, [1, 3])
    states = [
        clip.vision_model(pixel_values=x, output_hidden_states=True).hidden_states for x in (others, images)
    ]
    expected = torch.zeros(())
    norms = {1: clip.vision_model.encoder.layers[1].layer_norm1, 3: clip.vision_model.post_layernorm}
    for layer, norm in norms.items():
        cosine = F.cosine_similarity(*(norm(state[layer]) for state in states), dim=-1)
        expected = expected + (2 - 2 * cosine).mean() / len(norms)
    torch.testing.assert_close(distance(others, images), expected)


def test_clip_distance_tells_equal_from_unequal(tower: VisionTower) -> None:
    images = pictures()
    distance = build_perceptual(PerceptualConfig(kind="clip"), tower.encoder)
    assert distance is not None
    assert distance(images, images).item() == 0
    near, far = (distance(images + noise * torch.randn_like(images), images) for noise in (0.05, 0.5))
    assert 0 < near < far


def test_clip_layers_by_default_are_spread_over_its_depth(tower: VisionTower) -> None:
    assert ClipDistance(tower.encoder, []).layers == {1, 2}  # of three
    tower.encoder.model.encoder.layers.extend(nn.Identity() for _ in range(21))
    assert ClipDistance(tower.encoder, []).layers == {6, 12, 18}  # of 24


@pytest.mark.parametrize("kind", ["clip", "lpips"])
def test_gradients_reach_the_reconstruction_only(
    tower: VisionTower, file: Path, network: str, kind: str
) -> None:
    config = PerceptualConfig(kind=kind, network=network, weights=str(file), clip_layers=[3])
    distance = build_perceptual(config, tower.encoder)
    assert distance is not None
    assert not any(module.training for module in list(distance.modules())[1:])
    images, reconstructions = pictures(), pictures().requires_grad_()
    distance(reconstructions, images).backward()
    assert reconstructions.grad is not None
    assert (reconstructions.grad.flatten(1).abs().sum(dim=1) > 0).all()
    assert all(weight.grad is None and not weight.requires_grad for weight in distance.parameters())


def test_none_is_none_and_so_is_a_weight_of_zero(tower: VisionTower) -> None:
    assert build_perceptual(PerceptualConfig(), tower.encoder) is None
    assert build_perceptual(PerceptualConfig(kind="clip", weight=0.0), tower.encoder) is None


def test_the_encoder_trains_on_while_its_copy_stays(tower: VisionTower) -> None:
    images, others = pictures(), pictures()
    distance = build_perceptual(PerceptualConfig(kind="clip"), tower.encoder)
    assert distance is not None
    before = distance(others, images)
    with torch.no_grad():
        for weight in tower.encoder.parameters():
            assert weight.requires_grad
            weight.add_(0.1)
    assert torch.equal(distance(others, images), before)


def test_choices_that_do_not_exist_are_refused(tower: VisionTower) -> None:
    with pytest.raises(UserError, match="loss.perceptual.kind is 'vgg'; the choices are none, lpips, clip"):
        PerceptualConfig(kind="vgg")
    with pytest.raises(UserError, match="loss.perceptual.network is 'squeeze'; the choices are vgg, alex"):
        PerceptualConfig(network="squeeze")
    with pytest.raises(UserError, match=r"clip_layers is \[0, 2\], but this CLIP has the layers 1 to 3"):
        ClipDistance(tower.encoder, [0, 2])
