"""Networks in whose features two sets of pictures are compared (rFID, KID).

Numbers of different networks cannot be compared, so the network is part of a number's name, except for the Inception of
the FID paper, which `rfid` alone means.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from transformers import AutoConfig, AutoModel

from vilau_common.errors import UserError
from vilau_vision_tower.clip.config import OpenClipConfig
from vilau_vision_tower.evaluation.metric import NotComputed
from vilau_vision_tower.weights import read_weights, weights_file

INCEPTION, CLIP = "inception", "clip"
OPEN_CLIP_KIND = OpenClipConfig(model="", pretrained="").kind
INCEPTION_SETTING = "inception_weights"
INCEPTION_LAYER = "2048"  # after the average pooling, as in FID's paper
PREPROCESSOR = "preprocessor_config.json"


class FeatureNetwork(ABC):
    """suffix: of the names of numbers made from it ("" for Inception, else "_<name>")."""

    suffix: str

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 [B, C]."""


class InceptionFeatures(FeatureNetwork):
    """The Inception of FID, as torch-fidelity has it: TensorFlow's weights and TensorFlow's way to resize."""

    suffix = ""

    def __init__(self, weights: str | None, device: torch.device) -> None:
        """weights: a local copy of torch-fidelity's file; None: its download."""
        file = weights_file(weights, URL_INCEPTION_V3, INCEPTION_SETTING)
        # torch-fidelity would run what code the file holds; this reading proves that it holds none.
        read_weights(file, INCEPTION_SETTING)
        try:
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat", [INCEPTION_LAYER], feature_extractor_weights_path=str(file)
            )
        except RuntimeError:
            raise UserError(
                f"{INCEPTION_SETTING}: {file} is not torch-fidelity's Inception, which is at {URL_INCEPTION_V3}"
            ) from None
        self.network = network.to(device)

    def __call__(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


class TransformersFeatures(FeatureNetwork):
    """The pooled output of any transformers image model saved in a directory: SigLIP, CLIP, DINOv2, ViT, …"""

    def __init__(self, directory: Path, name: str, device: torch.device) -> None:
        """name: what numbers made from it carry. Raises UserError where there is no such model."""
        if not (directory / "config.json").is_file():
            raise UserError(
                f"features={directory}: expected inception, clip, or the directory of a transformers image model "
                "with config.json and its weights"
            )
        self.suffix = f"_{name}"
        config = AutoConfig.from_pretrained(directory)
        model = AutoModel.from_pretrained(directory, dtype=torch.float32)
        model = getattr(model, "vision_model", model)
        self.model = model.requires_grad_(False).eval().to(device)
        self.size = int(getattr(config, "vision_config", config).image_size)
        mean, std = _normalisation(directory, config.model_type)
        self.mean = torch.tensor(mean, device=device)[:, None, None]
        self.std = torch.tensor(std, device=device)[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255
        if pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return self.model(pixel_values=(pixels - self.mean) / self.std).pooler_output


def build_features(
    features: str, inception_weights: str | None, tower: Path, device: torch.device
) -> FeatureNetwork:
    """inception; clip (the CLIP that the tower began as, where its run's config.yaml says); or a directory.

    NotComputed, WeightsMissing: the weights cannot be had. UserError: what was named is not there.
    """
    if features == INCEPTION:
        return InceptionFeatures(inception_weights, device)
    if features == CLIP:
        return TransformersFeatures(_model_directory(_clip_of(tower)), CLIP, device)
    path = Path(features)
    return TransformersFeatures(_model_directory(path), path.resolve().name, device)


def _model_directory(path: Path) -> Path:
    return path / "model" if (path / "model").is_dir() else path


def _clip_of(tower: Path) -> Path:
    """The directory of the CLIP that a tower's run began with."""
    file = tower / "config.yaml"
    clip = OmegaConf.select(OmegaConf.load(file), "tower.clip") if file.is_file() else None
    path = None if clip is None else clip.get("pretrained")
    if clip is not None and clip.get("kind") == OPEN_CLIP_KIND:
        raise NotComputed(
            f"features=clip: {tower} began with open_clip's {clip.get('model')}, and features are read with "
            "transformers alone: name the directory of a transformers model, features=DIR"
        )
    if path is None or not Path(path).is_dir():
        where = f"it began with {path}, which is not here" if path else "its run does not say which"
        raise NotComputed(
            f"features=clip needs the CLIP that {tower} began with, but {where}: name its directory, features=DIR"
        )
    return Path(path)


def _normalisation(directory: Path, model_type: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels that the model was trained on."""
    file = directory / PREPROCESSOR
    if file.is_file():
        said = json.loads(file.read_text(encoding="utf-8"))
        return said["image_mean"], said["image_std"]
    if model_type == "siglip":  # all of them, our stand-in included: pixels in [-1, 1]
        return [0.5] * 3, [0.5] * 3
    raise UserError(
        f"features={directory}: there is no {PREPROCESSOR}, which says how its pixels are normalised"
    )
