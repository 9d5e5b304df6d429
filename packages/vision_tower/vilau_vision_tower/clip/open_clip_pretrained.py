"""Finding and reading a pretrained open_clip model."""

from __future__ import annotations

import difflib
import json
import pickle
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.pretrained import (
    download_pretrained,
    get_pretrained_cfg,
    list_pretrained_tags_by_model,
)

from vilau_common.errors import UserError
from vilau_common.fingerprint import weights_fingerprint
from vilau_vision_tower.clip.config import OpenClipConfig
from vilau_vision_tower.clip.open_clip_image import OpenClipVisionConfig, build_image_tower
from vilau_vision_tower.clip.open_clip_text import OpenClipTextConfig, OpenClipTextModel, build_tokenizer
from vilau_vision_tower.clip.pretrained import PretrainedClip
from vilau_vision_tower.clip.text import TextEncoder

OWN_SIZE = 224  # open_clip's, where a model's configuration has none
SETTINGS = "open_clip_config.json"  # beside a checkpoint from the hub


def load_open_clip(config: OpenClipConfig, image_size: int) -> PretrainedClip:
    """The open_clip model that `config` names, with position embeddings for `image_size` (open_clip interpolates).

    Raises UserError where there is none, where its weights or tokenizer cannot be had, or where its image tower has
    no grid of tokens before a last layer.
    """
    settings = model_settings(config.model)
    quick_gelu = bool(settings.get("quick_gelu", False))
    vision_config = OpenClipVisionConfig(
        embed_dim=settings["embed_dim"],
        vision_cfg=settings["vision_cfg"],
        quick_gelu=quick_gelu,
        image_size=image_size,
    )
    text_config = OpenClipTextConfig(
        embed_dim=settings["embed_dim"], text_cfg=settings["text_cfg"], quick_gelu=quick_gelu
    )
    try:
        with torch.device("meta"):
            build_image_tower(vision_config)
    except UserError as error:
        raise UserError(f"tower.clip.model {config.model} cannot be taken: {error}") from None
    weights = weights_file(config.model, config.pretrained, quick_gelu)
    mean, std = pixel_statistics(config, weights)
    tokenizer = tokenizer_of(text_config, weights.parent)
    own_size = settings["vision_cfg"].get("image_size", OWN_SIZE)
    try:
        model = open_clip.create_model(
            config.model,
            pretrained=str(weights),
            force_custom_text=True,
            force_image_size=None if image_size == own_size else image_size,
        )
    except (AttributeError, EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        cause = str(error).strip().splitlines()[0]
        raise UserError(f"{weights} is no checkpoint of open_clip's {config.model}: {cause}") from None
    text = OpenClipTextModel(text_config)
    text.text.load_state_dict(model.text.state_dict())
    return PretrainedClip(
        vision=model.visual,
        vision_config=vision_config,
        image_mean=mean,
        image_std=std,
        text=TextEncoder(text, tokenizer),
        logit_scale=model.logit_scale.exp().item(),
        logit_bias=None if model.logit_bias is None else model.logit_bias.item(),
        fingerprint=weights_fingerprint(weights),
    )


def model_settings(name: str) -> dict[str, Any]:
    """open_clip's configuration of a model. Raises UserError for an unknown one, or one of another making."""
    settings: dict[str, Any] | None = (
        open_clip.get_model_config(name) if name in open_clip.list_models() else None
    )
    if settings is None:
        alike = difflib.get_close_matches(name, open_clip.list_models(), 3, 0.5)
        guess = f"did you mean {' or '.join(alike)}?" if alike else "open_clip.list_models() lists them"
        raise UserError(f"tower.clip.model {name!r} is no model of open_clip; {guess}")
    if isinstance(settings["vision_cfg"].get("layers"), list):
        raise UserError(
            f"tower.clip.model {name} is a ResNet, which has no grid of tokens before a last transformer layer; take a "
            "ViT-* model"
        )
    if "multimodal_cfg" in settings:
        raise UserError(f"tower.clip.model {name} is a CoCa, with a captioner in it; take a ViT-* model")
    if "hf_model_name" in settings["text_cfg"]:
        raise UserError(
            f"tower.clip.model {name} has the text encoder {settings['text_cfg']['hf_model_name']}, which is not "
            "open_clip's own; take a ViT-* model"
        )
    return settings


def weights_file(model: str, pretrained: str, quick_gelu: bool) -> Path:
    """The checkpoint that `pretrained` (a file, a directory, or a tag to download) means. Raises UserError for none."""
    path = Path(pretrained)
    if path.is_dir():
        for name in (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME):
            if (path / name).is_file():
                return path / name
        raise UserError(
            f"no open_clip weights in {path}: expected {HF_SAFE_WEIGHTS_NAME} or {HF_WEIGHTS_NAME}"
        )
    if path.is_file():
        return path
    tag = get_pretrained_cfg(model, pretrained)
    if not tag:
        tags = ", ".join(list_pretrained_tags_by_model(model)) or "none"
        raise UserError(
            f"tower.clip.pretrained {pretrained!r} is neither a file nor a directory here nor a tag of {model} (its "
            f"tags: {tags})"
        )
    if bool(tag.get("quick_gelu", False)) != quick_gelu:
        other = model.removesuffix("-quickgelu") if quick_gelu else f"{model}-quickgelu"
        raise UserError(
            f"the tag {pretrained} was trained with another GELU than {model}: set tower.clip.model={other}"
        )
    try:
        return Path(download_pretrained(tag))
    except (OSError, RuntimeError):
        hub = str(tag.get("hf_hub", "")).rpartition("/")
        source = f"{HF_SAFE_WEIGHTS_NAME} of {hub[0]}" if not hub[2] else f"{hub[2]} of {hub[0]}"
        where = f"{source} on the Hugging Face hub" if hub[0] else tag.get("url")
        raise UserError(
            f"the weights of {model}, tag {pretrained}, are not here and cannot be downloaded: bring {where} (with the "
            "files beside it) into a directory and set tower.clip.pretrained to that directory or file"
        ) from None


def pixel_statistics(config: OpenClipConfig, weights: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels that a checkpoint was trained on.

    Those of the tag; for a file, what stands beside it, or what all tags of its model share. Raises UserError where
    they differ. A model without tags has open_clip's default.
    """
    tag = get_pretrained_cfg(config.model, config.pretrained)
    beside = weights.parent / SETTINGS
    if not tag and beside.is_file():
        tag = json.loads(beside.read_text(encoding="utf-8")).get("preprocess_cfg", {})
    tags = (
        [tag]
        if tag
        else [get_pretrained_cfg(config.model, name) for name in list_pretrained_tags_by_model(config.model)]
    )
    found = {
        (tuple(each.get("mean", OPENAI_DATASET_MEAN)), tuple(each.get("std", OPENAI_DATASET_STD)))
        for each in tags
    }
    if len(found) > 1:
        raise UserError(
            f"released checkpoints of {config.model} differ in how they normalise pixels: put the {SETTINGS} of "
            f"{weights.name} beside it"
        )
    mean, std = found.pop() if found else (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    return list(mean), list(std)


def tokenizer_of(config: OpenClipTextConfig, directory: Path) -> Any:
    """The text tokenizer: from beside the checkpoint, or else the hub. Raises UserError where it is in neither."""
    name = (config.text_cfg or {}).get("hf_tokenizer_name", "")
    source = directory if (directory / "tokenizer_config.json").is_file() else name
    try:
        return build_tokenizer(config, source)
    except (OSError, ValueError, ImportError):
        raise UserError(
            f"the text tokenizer {name} cannot be downloaded: bring its tokenizer.json and tokenizer_config.json into "
            f"{directory}, beside the checkpoint"
        ) from None
