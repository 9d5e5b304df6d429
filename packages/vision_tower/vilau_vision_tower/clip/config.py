"""Where the CLIP that a tower starts from is found: one dataclass for each kind of the `clip` config group."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class ClipConfig:
    """Which CLIP. Subclasses are the choices of the `clip` config group."""

    kind: str = "siglip"


@dataclass(kw_only=True)
class SiglipClipConfig(ClipConfig):
    """A transformers SigLIP, SigLIP 2 (fixed resolution) or CLIP.

    pretrained: a directory with config.json, model.safetensors and tokenizer files, a run of `train-clip`, or a
    model id of the Hugging Face hub.
    """

    kind: str = "siglip"
    pretrained: str


@dataclass(kw_only=True)
class OpenClipConfig(ClipConfig):
    """An open_clip model whose image tower is a vision transformer.

    model: its name (`open_clip.list_models()`). pretrained: a tag of that model, a checkpoint file, or a directory
    with open_clip_model.safetensors and, for models that need one, tokenizer files.
    """

    kind: str = "open_clip"
    model: str
    pretrained: str
