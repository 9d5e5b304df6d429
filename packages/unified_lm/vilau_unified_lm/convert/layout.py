"""What a directory of the official VILA-U code holds.

    config.json      model_type vila_u_llama; picture and video settings
    llm/             a LLaMA with its sentencepiece tokenizer
    vision_tower/    the tower (rqvaesiglip.…) and the depth transformer (rqtransformer.…) in one file
    mm_projector/    the projector

Each part has its own config.json and weights. All of it is checked here, against each other, before weights are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilau_common.errors import UserError
from vilau_common.weight_files import WeightFiles, read_json

LLM, TOWER, PROJECTOR = "llm", "vision_tower", "mm_projector"
PARTS = (LLM, TOWER, PROJECTOR)
MODEL_TYPES = {LLM: "llama", TOWER: "rqvaesigliptransformer_model", PROJECTOR: "v2l_projector"}
ROOT_MODEL_TYPE = "vila_u_llama"


@dataclass(frozen=True)
class OfficialCheckpoint:
    """directory; config: its config.json; parts: each part's; weights: each part's files, whose headers are read."""

    directory: Path
    config: dict[str, Any]
    parts: dict[str, dict[str, Any]]
    weights: dict[str, WeightFiles]

    def file(self, part: str, name: str = "config.json") -> Path:
        """A file of a part."""
        return self.directory / part / name


def is_official(directory: Path) -> bool:
    """Whether the directory is meant to be an official checkpoint, whole or not."""
    return any((directory / part).is_dir() for part in PARTS) and not (directory / "model").is_dir()


def open_official(directory: Path) -> OfficialCheckpoint:
    """The configurations and the headers of the weights.

    Raises UserError for a part that is missing or of no known type.
    """
    config = _part_config(directory / "config.json", ROOT_MODEL_TYPE)
    for part in PARTS:
        if not (directory / part).is_dir():
            raise UserError(
                f"no {part}/ in {directory}: an official VILA-U checkpoint has "
                f"{', '.join(f'{name}/' for name in PARTS)} and config.json"
            )
    parts = {part: _part_config(directory / part / "config.json", MODEL_TYPES[part]) for part in PARTS}
    return OfficialCheckpoint(
        directory, config, parts, {part: WeightFiles(directory / part) for part in PARTS}
    )


def _part_config(file: Path, model_type: str) -> dict[str, Any]:
    values = read_json(file)
    if values.get("model_type") != model_type:
        raise UserError(
            f"{file}: model_type is {values.get('model_type')!r}; only {model_type!r} can be read"
        )
    return values
