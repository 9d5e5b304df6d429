"""Pixel, codebook and perceptual metrics against slow references, in one batch and in several."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from evaluated import batch_of, in_parts, numbers
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vilau_common.errors import UserError
from vilau_vision_tower.evaluation.codebook import CodebookMetrics
from vilau_vision_tower.evaluation.metric import NotComputed
from vilau_vision_tower.evaluation.perceptual import LpipsMetric, load_lpips
from vilau_vision_tower.evaluation.pixels import HIGHEST_PSNR, PixelMetrics

CPU = torch.device("cpu")
ALEX_TAPS = (1, 4, 7, 9, 11)  # the ReLUs that LPIPS reads


def test_psnr_and_ssim_are_means_over_pictures() -> None:
    batch = batch_of(5)
    found = numbers(PixelMetrics(), *in_parts(batch, 2))
    images, again = (((x + 1) / 2).numpy() for x in (batch.images, batch.reconstructions))
    slow = [10 * math.log10(1 / np.mean((a - b) ** 2)) for a, b in zip(images, again, strict=True)]
    assert found["psnr"] == pytest.approx(np.mean(slow), rel=1e-5)
    single = [
        structural_similarity_index_measure(
            torch.tensor(b[None]), torch.tensor(a[None]), data_range=1.0
        ).item()
        for a, b in zip(images, again, strict=True)
    ]
    assert found["ssim"] == pytest.approx(np.mean(single), rel=1e-4)
    assert 0 < found["ssim"] < 1


def test_equal_pictures_do_not_make_the_mean_infinite() -> None:
    black = -torch.ones(2, 3, 24, 24)
    found = numbers(PixelMetrics(), batch_of(2, images=black, reconstructions=black))
    assert found["psnr"] == HIGHEST_PSNR
    assert found["ssim"] == pytest.approx(1.0)


def test_codebooks_are_counted_by_depth() -> None:
    codes = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [2, 2], [2, 3]]).reshape(2, 2, 2, 2)
    found = numbers(CodebookMetrics(4, 2), *in_parts(batch_of(2, codes=codes), 1))
    assert found["codebook_usage_d0"] == 0.75
    assert found["dead_codes_d0"] == 1
    assert found["codebook_entropy_d0"] == pytest.approx(1.5)  # of 1/2, 1/4, 1/4
    assert found["codebook_perplexity_d0"] == pytest.approx(2**1.5)
    assert found["codebook_usage_d1"] == 1.0
    assert found["dead_codes_d1"] == 0
    assert found["codebook_perplexity_d1"] == pytest.approx(4.0)


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet's file as torchvision has it, with random weights."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    state = torchvision.models.alexnet().state_dict()
    torch.save({name: value for name, value in state.items() if name.startswith("features.")}, path)
    return path


def slow_lpips(path: Path, images: Tensor, again: Tensor) -> Tensor:
    """LPIPS by its equation: float [B]."""
    network = torchvision.models.alexnet().features
    network.load_state_dict({name[9:]: value for name, value in torch.load(path).items()})
    linear = load_lpips("alex", str(path)).lins
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((each - shift[:, None, None]) / scale[:, None, None] for each in (images, again))
    total = torch.zeros(len(images))
    for index, layer in enumerate(network):
        x, y = layer(x), layer(y)
        if index in ALEX_TAPS:
            weights = linear[ALEX_TAPS.index(index)].model[-1].weight[0]
            difference = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square()
            total += (weights * difference).sum(dim=1).mean(dim=(1, 2))
    return total


@torch.no_grad()
def test_lpips_is_its_equation_with_weights_from_a_file(alexnet: Path) -> None:
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    again = (images + 0.2 * torch.randn_like(images)).clamp(-1, 1)
    found = numbers(LpipsMetric("alex", str(alexnet), CPU), batch_of(3, images=images, reconstructions=again))
    assert found["lpips_alex"] == pytest.approx(slow_lpips(alexnet, images, again).mean().item(), rel=1e-4)
    assert found["lpips_alex"] > 0


def test_lpips_says_what_it_lacks(alexnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        NotComputed, match=r"alexnet-owt-\w+\.pth is needed, but HF_HUB_OFFLINE is set: bring it to .*lpips_w"
    ):
        load_lpips("alex", None)
    with pytest.raises(UserError, match=r"lpips_weights=nowhere.pth: there is no such file"):
        load_lpips("alex", "nowhere.pth")
    with pytest.raises(UserError, match=r"lpips=squeeze: the choices are alex, vgg"):
        load_lpips("squeeze", None)
    with pytest.raises(UserError, match=r"not torchvision's vgg|has no features\.\d+"):
        load_lpips("vgg", str(alexnet))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"text.pth cannot be read as weights"):
        load_lpips("alex", str(tmp_path / "text.pth"))


def test_a_weights_file_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    torch.save({"features.0.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_lpips("alex", str(tmp_path / "trap.pth"))
    assert not (tmp_path / "sprung").exists()


def test_a_download_is_kept_for_the_next_time(
    alexnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []

    def download(url: str, target: str, progress: bool) -> None:
        asked.append(url)
        Path(target).write_bytes(alexnet.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        load_lpips("alex", None)
    assert len(asked) == 1
    (tmp_path / "checkpoints").rename(tmp_path / "moved")
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no net"))
    )
    with pytest.raises(NotComputed, match=r"cannot be downloaded \(no net\): bring it to"):
        load_lpips("alex", None)
