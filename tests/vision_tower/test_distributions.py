"""rFID and KID against torchmetrics and slow sums, and the networks that they are measured with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluated import batch_of, in_parts, numbers
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from transformers import PreTrainedTokenizerFast, SiglipModel

from vilau_common.errors import UserError
from vilau_vision_tower.evaluation.distributions import FeatureDistances, Moments, Reservoir, to_bytes
from vilau_vision_tower.evaluation.features import (
    FeatureNetwork,
    InceptionFeatures,
    TransformersFeatures,
    build_features,
)
from vilau_vision_tower.evaluation.metric import NotComputed
from vilau_vision_tower.weights import WeightsMissing

CPU = torch.device("cpu")


class ToyFeatures(FeatureNetwork, nn.Module):
    """A random linear map of a few pixels."""

    suffix = "_toy"
    num_features = 5

    def __init__(self) -> None:
        super().__init__()
        self.map = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))

    def __call__(self, images: Tensor) -> Tensor:
        return images[:, :, :2, :2].flatten(1).float() / 255 @ self.map

    forward = __call__


def test_rfid_is_torchmetrics_fid() -> None:
    batch = batch_of(40)
    found = numbers(FeatureDistances(ToyFeatures(), 100, 10, 0), *in_parts(batch, 7))
    oracle = FrechetInceptionDistance(feature=ToyFeatures(), input_img_size=(3, 24, 24)).set_dtype(
        torch.float64
    )
    oracle.update(to_bytes(batch.images), real=True)
    oracle.update(to_bytes(batch.reconstructions), real=False)
    assert found["rfid_toy"] == pytest.approx(oracle.compute().item(), rel=1e-6)
    assert found["rfid_toy"] > 0


def test_kid_is_torchmetrics_and_torch_fidelitys() -> None:
    batch = batch_of(40)
    whole, part = (numbers(FeatureDistances(ToyFeatures(), 100, size, 3), batch) for size in (40, 15))
    oracle = KernelInceptionDistance(feature=ToyFeatures(), subsets=2, subset_size=40)
    oracle.update(to_bytes(batch.images), real=True)
    oracle.update(to_bytes(batch.reconstructions), real=False)
    mean, _ = oracle.compute()
    assert whole["kid_toy"] == pytest.approx(mean.item(), rel=1e-4)
    pair = (ToyFeatures()(to_bytes(images)).double() for images in (batch.images, batch.reconstructions))
    fidelity = kid_features_to_metric(*pair, kid_subset_size=15, rng_seed=3, verbose=False)
    assert part["kid_toy"] == pytest.approx(fidelity["kernel_inception_distance_mean"], rel=1e-9)
    assert part["kid_std_toy"] == pytest.approx(fidelity["kernel_inception_distance_std"], rel=1e-9)
    assert whole["kid_paired_toy"] != pytest.approx(whole["kid_toy"], rel=0.01)


def slow_kid(real: Tensor, again: Tensor) -> float:
    """The mean of h((x, x'), (y, y')) over pairs of different pictures (Gretton et al. 2012, lemma 6)."""

    def kernel(x: Tensor, y: Tensor) -> float:
        return float(x.double() @ y.double() / len(x) + 1) ** 3

    pairs = [(i, j) for i in range(len(real)) for j in range(len(real)) if i != j]
    return sum(
        kernel(real[i], real[j])
        + kernel(again[i], again[j])
        - kernel(real[i], again[j])
        - kernel(real[j], again[i])
        for i, j in pairs
    ) / len(pairs)


def test_paired_kid_compares_no_picture_with_its_own_reconstruction() -> None:
    batch = batch_of(12)
    found = numbers(FeatureDistances(ToyFeatures(), 100, 1000, 0), *in_parts(batch, 5))
    pair = (ToyFeatures()(to_bytes(images)) for images in (batch.images, batch.reconstructions))
    assert found["kid_paired_toy"] == pytest.approx(slow_kid(*pair), rel=1e-6)
    assert found["kid_std_toy"] == pytest.approx(0, abs=1e-9), "every subset is the whole"
    assert found["kid_subset_size"] == 12


def test_paired_kid_of_subsets_is_unbiased() -> None:
    batch = batch_of(40)
    few, all_of_them = (numbers(FeatureDistances(ToyFeatures(), 100, size, 0), batch) for size in (15, 40))
    error = few["kid_std_toy"] / 100**0.5  # of the other estimate, but as large
    assert abs(few["kid_paired_toy"] - all_of_them["kid_paired_toy"]) < 4 * error
    assert few["kid_subset_size"] == 15


def test_perfect_reconstructions_are_no_distance_away() -> None:
    images = torch.rand(30, 3, 24, 24) * 2 - 1
    found = numbers(
        FeatureDistances(ToyFeatures(), 20, 10, 0), batch_of(30, images=images, reconstructions=images)
    )
    assert found["rfid_toy"] == pytest.approx(0, abs=1e-6)
    assert found["kid_paired_toy"] == pytest.approx(0, abs=1e-9)
    assert found["kid_toy"] < 0, "each picture finds itself in the other set"


def test_a_single_picture_has_no_distance() -> None:
    with pytest.raises(NotComputed, match="need 2 pictures at least, but there are 1"):
        numbers(FeatureDistances(ToyFeatures(), 100, 1000, 0), batch_of(1))


def test_running_moments_are_numpys() -> None:
    rows, moments = torch.randn(30, 4) + 100, Moments()
    for part in rows.split(7):
        moments.add(part)
    found = moments.statistics()
    np.testing.assert_allclose(found["mu"], rows.double().numpy().mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["sigma"], np.cov(rows.double().numpy(), rowvar=False), atol=1e-9)


def test_a_reservoir_keeps_every_row_equally_often() -> None:
    kept = torch.zeros(20)
    for seed in range(600):
        reservoir = Reservoir(5, seed)
        for part in torch.arange(20).split(6):
            reservoir.add(part)
        assert len(set(reservoir.items().tolist())) == 5
        kept[reservoir.items()] += 1
    # 150 times expected, with a standard deviation of 10.6.
    assert kept.min() > 110
    assert kept.max() < 190


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torch-fidelity's Inception file, with random weights."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {}
        )
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.save(FeatureExtractorInceptionV3("random", ["2048"]).state_dict(), path)
    return path


def test_inception_is_read_from_a_local_file(inception: Path) -> None:
    network = InceptionFeatures(str(inception), CPU)
    images = to_bytes(torch.rand(2, 3, 24, 24) * 2 - 1)
    oracle = FeatureExtractorInceptionV3("it", ["2048"], feature_extractor_weights_path=str(inception))
    assert network.suffix == ""
    assert network(images).shape == (2, 2048)
    torch.testing.assert_close(network(images), oracle(images)[0])


def test_inception_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsMissing, match="weights-inception-.* is needed, .*inception_weights=FILE"):
        InceptionFeatures(None, CPU)
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="other.pth is not torch-fidelity's Inception"):
        InceptionFeatures(str(tmp_path / "other.pth"), CPU)


@pytest.fixture
def clip_directory(clip: SiglipModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    directory = tmp_path / "my_clip" / "model"
    clip.save_pretrained(directory)
    return directory.parent


def test_a_transformers_model_gives_its_pooled_output(clip: SiglipModel, clip_directory: Path) -> None:
    network = build_features(str(clip_directory), None, clip_directory, CPU)
    assert network.suffix == "_my_clip"
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    images = to_bytes(pixels)
    expected = clip.vision_model(pixel_values=images.float() / 127.5 - 1).pooler_output
    torch.testing.assert_close(network(images), expected)
    assert network(to_bytes(torch.rand(2, 3, 50, 50))).shape == expected.shape, (
        "other sizes are brought to its own"
    )


def test_a_preprocessor_says_how_pixels_are_normalised(clip: SiglipModel, clip_directory: Path) -> None:
    said = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (clip_directory / "model" / "preprocessor_config.json").write_text(json.dumps(said))
    images = to_bytes(torch.rand(2, 3, 32, 32))
    mean, std = (torch.tensor(said[name])[:, None, None] for name in ("image_mean", "image_std"))
    expected = clip.vision_model(pixel_values=(images.float() / 255 - mean) / std).pooler_output
    found = TransformersFeatures(clip_directory / "model", "it", CPU)(images)
    torch.testing.assert_close(found, expected)


def test_clip_is_the_one_that_the_tower_began_with(clip_directory: Path, tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    tower.mkdir()
    with pytest.raises(
        NotComputed, match="features=clip needs .* its run does not say which: name its directory"
    ):
        build_features("clip", None, tower, CPU)
    (tower / "config.yaml").write_text(f"tower: {{clip: {{pretrained: {clip_directory}}}}}")
    assert build_features("clip", None, tower, CPU).suffix == "_clip"
    (tower / "config.yaml").write_text(
        f"tower: {{clip: {{kind: open_clip, model: ViT-B-16, pretrained: {clip_directory}}}}}"
    )
    with pytest.raises(
        NotComputed, match="began with open_clip's ViT-B-16, and features .* name the directory of a tr"
    ):
        build_features("clip", None, tower, CPU)
    (tower / "config.yaml").write_text("tower: {clip: {pretrained: gone}}")
    with pytest.raises(NotComputed, match="it began with gone, which is not here"):
        build_features("clip", None, tower, CPU)


def test_an_unknown_network_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features=resnet: expected inception, clip, or the directory"):
        build_features("resnet", None, tmp_path, CPU)
