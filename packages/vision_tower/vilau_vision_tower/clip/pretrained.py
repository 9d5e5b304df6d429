"""Finding and reading a pretrained CLIP: its image tower at the resolution asked for, and its text encoder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from tokenizers import normalizers
from torch import nn
from transformers import (
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    SiglipModel,
)
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vilau_common.errors import UserError
from vilau_common.fingerprint import weights_fingerprint
from vilau_vision_tower.clip.config import ClipConfig, OpenClipConfig, SiglipClipConfig
from vilau_vision_tower.clip.image import PLAIN
from vilau_vision_tower.clip.text import TextEncoder, load_text_tokenizer
from vilau_vision_tower.clip.transformers_image import resized_positions

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
LOWER_CASE_TOKENIZERS = ("SiglipTokenizer", "Siglip2Tokenizer", "GemmaTokenizer", "GemmaTokenizerFast")
FAMILIES = {"siglip": SiglipModel, "clip": CLIPModel}
STAND_IN = "`make train-clip` trains the small stand-in"


@dataclass
class PretrainedClip:
    vision: nn.Module  # the library's image tower
    vision_config: PreTrainedConfig
    image_mean: list[float]  # of images in [0, 1], one for each channel
    image_std: list[float]
    text: TextEncoder
    logit_scale: float  # that its contrastive loss has learned: the factor itself
    logit_bias: float | None  # None: it was trained by softmax
    fingerprint: str  # of the files that the weights come from


def load_pretrained(config: ClipConfig, image_size: int) -> PretrainedClip:
    """The CLIP that `config` names, its position embeddings interpolated where it was trained at another `image_size`.

    Raises UserError where it is not found, cannot be had without a network, or has no image tower for a vision tower.
    """
    if isinstance(config, OpenClipConfig):
        # open_clip and timm take seconds to import, and no other CLIP needs them.
        from vilau_vision_tower.clip.open_clip_pretrained import load_open_clip

        return load_open_clip(config, image_size)
    assert isinstance(config, SiglipClipConfig)
    path = clip_directory(config.pretrained)
    model, tokenizer = load_clip(path)
    bias: float | None = None
    if isinstance(model, SiglipModel):
        vision, text, mean, std = model.vision_model, model.text_model, [PLAIN] * 3, [PLAIN] * 3
        bias = model.logit_bias.item()
    else:
        vision, text = split_clip(model)
        mean, std = list(OPENAI_CLIP_MEAN), list(OPENAI_CLIP_STD)
    mean, std = pixel_statistics(path, mean, std)
    vision = resized(vision, image_size)
    return PretrainedClip(
        vision=vision,
        vision_config=vision.config,
        image_mean=mean,
        image_std=std,
        text=TextEncoder(text, tokenizer),
        logit_scale=model.logit_scale.exp().item(),
        logit_bias=bias,
        fingerprint=weights_fingerprint(path),
    )


def clip_directory(pretrained: str) -> Path:
    """The directory of a transformers CLIP: `pretrained` itself, its model/, or where the hub's files are kept.

    Raises UserError where there is none.
    """
    path = Path(pretrained)
    path = path / "model" if (path / "model").is_dir() else path
    if path.exists() or not HUB_ID.fullmatch(pretrained):
        check_clip(path)
        return path
    try:
        path = Path(snapshot_download(pretrained, allow_patterns=HUB_FILES))
        if not any(path.glob("*.safetensors")):
            snapshot_download(pretrained, allow_patterns=[*HUB_FILES, "*.bin"])
    except (OSError, ValueError):
        raise UserError(
            f"no CLIP in {pretrained}: there is no such directory, and the Hugging Face hub has no such model or is "
            f"out of reach; bring its files here (elsewhere: hf download {pretrained} --local-dir clip: config.json, "
            "model.safetensors, tokenizer.json, tokenizer_config.json, preprocessor_config.json) and set "
            f"tower.clip.pretrained to their directory, or {STAND_IN}"
        ) from None
    return path


def check_clip(directory: Path) -> str:
    """The family of the CLIP in `directory`, a key of FAMILIES. Raises UserError for none, or one of no use."""
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(
            f"no CLIP in {directory}: expected a transformers SigLIP or CLIP directory with config.json and "
            f"model.safetensors; {STAND_IN}"
        )
    family = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    if family == "siglip2":
        raise UserError(
            f"the CLIP in {directory} is a SigLIP 2 of variable resolution (naflex), whose patches form no fixed "
            "grid; take one of fixed resolution, such as google/siglip2-large-patch16-256"
        )
    if family not in FAMILIES:
        raise UserError(
            f"the model in {directory} is of type {family!r}; a tower starts from {' or '.join(FAMILIES)}, or from "
            "open_clip's models (clip=open_clip)"
        )
    return str(family)


def load_clip(directory: str | Path) -> tuple[SiglipModel | CLIPModel, PreTrainedTokenizerFast]:
    """A transformers CLIP and its tokenizer from a directory. Raises UserError where there is none, or a part."""
    path = Path(directory)
    family = FAMILIES[check_clip(path)]
    tokenizer = lower_cased(load_text_tokenizer(path), path)
    try:
        model, report = family.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the weights in {path} cannot be read: {str(error).strip().splitlines()[0]}"
        ) from None
    # transformers would go on with random numbers in their place.
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"the weights in {path} lack {len(missing)} of the model's, among them {missing[0]}")
    return model, tokenizer


def lower_cased(tokenizer: PreTrainedTokenizerFast, directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a SigLIP or SigLIP 2, which have read nothing but lower-case captions; any other as it is.

    Their published tokenizer.json may leave that to the caller, as Gemma's does, which SigLIP 2 took over. Put into the
    tokenizer itself, it is saved with the tower.
    """
    file = directory / "tokenizer_config.json"
    name = json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class")
    if name in LOWER_CASE_TOKENIZERS:
        backend = tokenizer.backend_tokenizer
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return tokenizer


def split_clip(model: CLIPModel) -> tuple[CLIPVisionModelWithProjection, CLIPTextModelWithProjection]:
    """The two halves of a CLIP as transformers' models of their own, without a copy of the weights."""
    parts: list[Any] = []
    for family, config in (
        (CLIPVisionModelWithProjection, model.config.vision_config),
        (CLIPTextModelWithProjection, model.config.text_config),
    ):
        config.projection_dim = model.config.projection_dim
        with torch.device("meta"):
            parts.append(family(config))
    vision, text = parts
    vision.vision_model, vision.visual_projection = model.vision_model, model.visual_projection
    text.text_model, text.text_projection = model.text_model, model.text_projection
    return vision, text


def resized(vision: Any, image_size: int) -> Any:
    """The image tower of a SigLIP or CLIP for another image size; the very same where it is its own.

    Raises UserError for a size that holds no patch.
    """
    if image_size < vision.config.patch_size:
        raise UserError(
            f"data.image_size is {image_size}, but a patch of the CLIP has {vision.config.patch_size} pixels a side"
        )
    if vision.config.image_size == image_size:
        return vision
    state = vision.state_dict()
    name = next(key for key in state if key.endswith("embeddings.position_embedding.weight"))
    inner = getattr(vision, "vision_model", vision)
    state[name] = resized_positions(inner.embeddings, image_size)
    config = type(vision.config)(**{**vision.config.to_dict(), "image_size": image_size})
    other = type(vision)(config)
    other.load_state_dict(state)
    return other


def pixel_statistics(path: Path, mean: list[float], std: list[float]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that the image processor beside a model has; `mean`, `std` where there is none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (path / name).is_file():
            values = json.loads((path / name).read_text(encoding="utf-8"))
            values = values.get("image_processor", values)
            return list(values.get("image_mean", mean)), list(values.get("image_std", std))
    return mean, std
