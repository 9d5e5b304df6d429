"""Tiny CLIPs of every family with random weights, saved as their libraries do, and what the libraries make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME
from safetensors.torch import save_model
from timm.models import VisionTransformer as TimmVisionTransformer
from timm.models import register_model
from tiny_tower import disturb, tiny_clip
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    Siglip2Tokenizer,
)

from vilau_common.run import isolated_random
from vilau_vision_tower.clip.config import ClipConfig, OpenClipConfig, SiglipClipConfig

SIZE = 32
CAPTIONS = ["a red circle", "nothing else, but in a green and blue square"]
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
OPEN_CLIP_TEXT = {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2}
# As in open_clip's own files of CLIP, CLIPA, SigLIP and MobileCLIP, but small.
OPEN_CLIP_MODELS: dict[str, dict[str, Any]] = {
    "tiny-ViT": {
        "embed_dim": 10,
        "vision_cfg": {"image_size": SIZE, "layers": 3, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": OPEN_CLIP_TEXT,
    },
    "tiny-ViT-quickgelu": {
        "embed_dim": 10,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": SIZE,
            "layers": 3,
            "width": 16,
            "head_width": 8,
            "patch_size": 8,
            "ls_init_value": 0.1,
            "patch_dropout": 0.5,
            "no_ln_pre": True,
            "pool_type": "avg",
            "final_ln_after_pool": True,
        },
        "text_cfg": OPEN_CLIP_TEXT,
    },
    "tiny-timm-SigLIP": {
        "embed_dim": 16,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": SIZE,
            "timm_model_name": "vilau_tiny_siglip",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            **OPEN_CLIP_TEXT,
            "vocab_size": 400,
            "hf_tokenizer_name": "nobody/has-this",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
        },
    },
    "tiny-timm-class-token": {
        "embed_dim": 10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": SIZE,
            "timm_model_name": "vilau_tiny_class_token",
            "timm_model_pretrained": False,
            "timm_pool": "token",
            "timm_proj": None,
        },
        "text_cfg": OPEN_CLIP_TEXT,
    },
}


@dataclass
class Oracle:
    """What the library itself makes of pictures float [B, 3, H, W] in [-1, 1] and of captions."""

    hidden: Callable[[Tensor], Tensor]  # output of the penultimate layer, float [B, P + h * w, C]
    image: Callable[[Tensor], Tensor]  # unit vectors float [B, E]
    text: Callable[[list[str]], Tensor]  # unit vectors float [B, E]


@dataclass
class SavedClip:
    """A CLIP on disk. oracle: reads it with its library, for pictures of so many pixels a side."""

    config: ClipConfig
    directory: Path
    prefix_tokens: int
    grid: tuple[int, int]
    oracle: Callable[[int], Oracle]


def save_siglip(directory: Path, tokenizer: PreTrainedTokenizerFast) -> SavedClip:
    """A transformers SigLIP, as `vilau train-clip` saves it."""
    tiny_clip(tokenizer, SIZE).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    end = tokenizer.eos_token
    return SavedClip(
        SiglipClipConfig(pretrained=str(directory)),
        directory,
        prefix_tokens=0,
        grid=(4, 4),
        oracle=lambda size: transformers_oracle(directory, size, end),
    )


def siglip2_tokenizer() -> Siglip2Tokenizer:
    """SigLIP 2's tokenizer, with a small vocabulary; it brings text to lower case."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    texts = [*CAPTIONS, *(caption.title() for caption in CAPTIONS)]
    tokenizer.train_from_iterator(texts, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return Siglip2Tokenizer(vocab=trained["vocab"], merges=[tuple(merge) for merge in trained["merges"]])


def save_clip(directory: Path) -> SavedClip:
    """A transformers CLIP with a tokenizer that ends texts by itself, and pixel statistics of its own."""
    tokenizer = clip_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=10)
    disturb(CLIPModel(config)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    CLIPImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25]).save_pretrained(directory)
    return SavedClip(
        SiglipClipConfig(pretrained=str(directory)),
        directory,
        prefix_tokens=1,
        grid=(4, 4),
        oracle=lambda size: transformers_oracle(directory, size, ""),
    )


def save_open_clip(directory: Path, name: str) -> SavedClip:
    """An open_clip model; the one that needs it has the hub's files beside its weights."""
    directory.mkdir(parents=True, exist_ok=True)
    register_open_clip(directory.parent / "open_clip_models")
    settings = OPEN_CLIP_MODELS[name]
    model = disturb(open_clip.create_model(name))
    weights = directory / HF_SAFE_WEIGHTS_NAME
    save_model(model, weights)
    own_tokenizer = "hf_tokenizer_name" in settings["text_cfg"]
    if own_tokenizer:
        clip_tokenizer().save_pretrained(directory)
        statistics = {"mean": [0.5] * 3, "std": [0.5] * 3}
        content = {"model_cfg": settings, "preprocess_cfg": statistics}
        (directory / "open_clip_config.json").write_text(json.dumps(content))
    timm_trunk = getattr(model.visual, "trunk", None)
    prefix = 1 if timm_trunk is None else timm_trunk.num_prefix_tokens
    return SavedClip(
        OpenClipConfig(model=name, pretrained=str(directory if own_tokenizer else weights)),
        directory,
        prefix_tokens=prefix,
        grid=(4, 4),
        oracle=lambda size: open_clip_oracle(
            f"local-dir:{directory}" if own_tokenizer else name, None if own_tokenizer else str(weights), size
        ),
    )


def transformers_oracle(directory: Path, size: int, end: str) -> Oracle:
    """transformers' own AutoModel, AutoTokenizer and AutoImageProcessor; end: what a caption needs at its end."""
    model, tokenizer = AutoModel.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    length = model.config.text_config.max_position_embeddings

    def pixels(images: Tensor) -> Tensor:
        if not (directory / "preprocessor_config.json").exists() and not list(directory.glob("proc*.json")):
            return images
        processor = AutoImageProcessor.from_pretrained(directory)
        unit = {"do_resize": False, "do_center_crop": False, "do_rescale": False}
        return processor(list((images + 1) / 2), return_tensors="pt", **unit)["pixel_values"]

    def both(images: Tensor, captions: list[str]) -> Any:
        ids = tokenizer(
            [caption + end for caption in captions],
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )["input_ids"]
        return model(input_ids=ids, pixel_values=pixels(images), interpolate_pos_encoding=size != SIZE)

    return Oracle(
        hidden=lambda images: model.vision_model(
            pixel_values=pixels(images),
            output_hidden_states=True,
            interpolate_pos_encoding=size != SIZE,
        ).hidden_states[-2],
        image=lambda images: both(images, CAPTIONS[:1]).image_embeds,
        text=lambda captions: both(torch.zeros(1, 3, size, size), captions).text_embeds,
    )


def open_clip_oracle(name: str, pretrained: str | None, size: int) -> Oracle:
    """open_clip's own model, preprocessing and tokenizer."""
    model, _, preprocess = open_clip.create_model_and_transforms(
        name, pretrained=pretrained, force_image_size=None if size == SIZE else size
    )
    model.eval()
    tokenizer, normalize = open_clip.get_tokenizer(name), preprocess.transforms[-1]

    def hidden(images: Tensor) -> Tensor:
        found = model.visual.forward_intermediates(
            normalize((images + 1) / 2), indices=[1], output_fmt="NLC", output_extra_tokens=True
        )
        prefix = [tokens for tokens in found.get("image_intermediates_prefix", []) if tokens is not None]
        return torch.cat([*prefix, found["image_intermediates"][0].flatten(1, -2)], dim=1)

    return Oracle(
        hidden=hidden,
        image=lambda images: model.encode_image(normalize((images + 1) / 2), normalize=True),
        text=lambda captions: model.encode_text(tokenizer(captions), normalize=True),
    )


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that adds begin and end by itself, pads with the end, and has the end last, as CLIP does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.add_special_tokens([BEGIN, END])
    ends = [(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{BEGIN} $A {END}", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=END)


def register_open_clip(directory: Path) -> None:
    """Make open_clip know the tiny models, and timm their trunks."""
    directory.mkdir(exist_ok=True)
    for name, settings in OPEN_CLIP_MODELS.items():
        (directory / f"{name}.json").write_text(json.dumps(settings))
    open_clip.add_model_config(directory)
    for entry in (vilau_tiny_siglip, vilau_tiny_class_token):
        if not timm.is_model(entry.__name__):
            register_model(entry)


def vilau_tiny_siglip(pretrained: bool = False, **settings: Any) -> TimmVisionTransformer:
    """SigLIP's trunk, small."""
    return tiny_trunk(settings, class_token=False)


def vilau_tiny_class_token(pretrained: bool = False, **settings: Any) -> TimmVisionTransformer:
    """A trunk with class token and a register."""
    return tiny_trunk(settings, class_token=True, reg_tokens=1, pre_norm=True)


def tiny_trunk(settings: dict[str, Any], **changes: Any) -> TimmVisionTransformer:
    kept = {name: settings[name] for name in ("num_classes", "global_pool") if name in settings}
    with isolated_random(0):
        trunk = TimmVisionTransformer(
            img_size=SIZE, patch_size=8, embed_dim=16, depth=3, num_heads=2, **kept, **changes
        )
    trunk.default_cfg = {}
    return trunk
