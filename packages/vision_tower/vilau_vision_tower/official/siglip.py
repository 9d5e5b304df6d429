"""The sizes of the SigLIPs that the released towers are built on.

An official checkpoint names its SigLIP by a hub id and holds no sizes of it. Those of the two published towers stand
here, so that no hub is needed; any other is a directory with a config.json, beside the checkpoint or anywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import SiglipVisionConfig

from vilau_common.errors import UserError
from vilau_common.weight_files import read_json

# From the models' config.json; what is not said here is SiglipVisionConfig's default.
PUBLISHED: dict[str, dict[str, int]] = {
    "siglip-large-patch16-256": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 256,
        "patch_size": 16,
    },
    "siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}


def siglip_vision_config(name: str, checkpoint: Path, source: str) -> SiglipVisionConfig:
    """The image encoder of the SigLIP that a checkpoint directory names.

    name: a directory (in the checkpoint, in its vision_tower/, or anywhere), or one of PUBLISHED behind any prefix.
    source: where the name stands, for the error. Raises UserError for a name that leads nowhere.
    """
    for directory in (checkpoint / name, checkpoint / "vision_tower" / name, Path(name)):
        if (directory / "config.json").is_file():
            return _from_file(directory / "config.json")
    known = Path(name).name
    if known not in PUBLISHED:
        raise UserError(
            f"{source} is {name!r}, whose sizes are not known; known are {' and '.join(PUBLISHED)}, and a directory "
            f"with the SigLIP's config.json in {checkpoint}"
        )
    return SiglipVisionConfig(**PUBLISHED[known])


def _from_file(file: Path) -> SiglipVisionConfig:
    values: dict[str, Any] = read_json(file)
    if values.get("model_type") == "siglip":
        values = values.get("vision_config") or {}
    if values.get("model_type", SiglipVisionConfig.model_type) != SiglipVisionConfig.model_type:
        raise UserError(f"{file} has the model_type {values.get('model_type')!r}; a SigLIP's is 'siglip'")
    return SiglipVisionConfig.from_dict(values)
