"""Pixel, codebook and perceptual metrics against slow references, in one batch and in several."""

from __future__ import annotations

import math
import subprocess
import sys
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
from vilau_vision_tower.evaluation.perceptual import LpipsMetric
from vilau_vision_tower.evaluation.pixels import HIGHEST_PSNR, PixelMetrics
from vilau_vision_tower.weights import WeightsMissing, weights_file

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
    linear = LpipsMetric("alex", str(path), CPU).model.lins
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
        WeightsMissing,
        match=r"alexnet-owt-\w+\.pth is needed, but HF_HUB_OFFLINE is set: bring it to .*lpips_w",
    ):
        LpipsMetric("alex", None, CPU)
    with pytest.raises(UserError, match=r"lpips_weights=nowhere.pth: there is no such file"):
        LpipsMetric("alex", "nowhere.pth", CPU)
    with pytest.raises(UserError, match=r"lpips=squeeze: the choices are vgg, alex"):
        LpipsMetric("squeeze", None, CPU)
    with pytest.raises(UserError, match=r"is of another network than vgg|has no features\.\d+"):
        LpipsMetric("vgg", str(alexnet), CPU)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"text.pth cannot be read as weights"):
        LpipsMetric("alex", str(tmp_path / "text.pth"), CPU)


def test_a_weights_file_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    torch.save({"features.0.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        LpipsMetric("alex", str(tmp_path / "trap.pth"), CPU)
    assert not (tmp_path / "sprung").exists()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, of a machine that may download."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return tmp_path / "checkpoints"


def test_a_download_is_kept_for_the_next_time(
    alexnet: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(url: str, target: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, hash_prefix))
        Path(target).write_bytes(alexnet.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        LpipsMetric("alex", None, CPU)
    assert asked == [("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79")]
    cache.rename(cache.parent / "moved")
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no net"))
    )
    with pytest.raises(WeightsMissing, match=r"cannot be downloaded \(no net\): bring it to"):
        LpipsMetric("alex", None, CPU)


def test_of_several_processes_one_downloads(cache: Path, tmp_path: Path) -> None:
    """Before a training the processes share nothing but the disk."""
    there = tmp_path / "there"
    there.mkdir()
    (there / "big-00000000.pth").write_bytes(bytes(1000))
    program = (
        "import sys, time, torch\n"
        "from vilau_vision_tower.weights import weights_file\n"
        "fetch = torch.hub.download_url_to_file\n"
        "def slow(url, target, **more):\n"
        "    print('downloads', flush=True)\n"
        "    time.sleep(2)\n"
        "    fetch(url, target, **more)\n"
        "torch.hub.get_dir = lambda: sys.argv[1]\n"
        "torch.hub.download_url_to_file = slow\n"
        "print(weights_file(None, sys.argv[2], 'x').stat().st_size)\n"
    )
    command = [sys.executable, "-c", program, str(cache.parent), (there / "big-00000000.pth").as_uri()]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=120)[0].split() for process in processes]
    assert sorted(told) == [["1000"], ["downloads", "1000"]]


def test_another_file_under_the_same_address_is_told(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "net-0123abcd.pth"
    file.write_bytes(b"an error page")
    with pytest.raises(
        WeightsMissing, match=r"gave is not that file \(invalid hash value .*: bring it to .* x=FILE"
    ):
        weights_file(None, file.as_uri(), "x", "0123abcd")
    assert not list(cache.glob("net-*"))
