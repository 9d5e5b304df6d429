"""What a `UnifiedLM` does not hold of an official checkpoint, and what is needed to write one.

Configurations and the tokenizer's files; the names, shapes and dtypes of its tensors; and the tensors that ours has no
use for: SigLIP's text model and the scale of its alignment, and each codebook's padding row. A converted checkpoint
carries them in its directory `official/`; an official checkpoint is its own template.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vilau_common.tensor_links import Link
from vilau_common.weight_files import WeightFiles, read_json
from vilau_unified_lm.convert.layout import PARTS, TOWER, OfficialCheckpoint
from vilau_unified_lm.convert.links import canonical
from vilau_unified_lm.model import UnifiedLM
from vilau_vision_tower.official import has_padding_row

OFFICIAL = "official"
NAMES, LEFT_OVER = "names.json", "model.safetensors"
PADDING_ROW = ".padding_row"
KEPT_SUFFIXES = (".json", ".model", ".txt", ".jinja")


@dataclass(frozen=True)
class Template:
    """files: where each file but the weights lies, by its place in the official directory. shapes: of all tensors, by
    part and name. left_over: names of the tensors that `read` gives; those of padding rows end with PADDING_ROW."""

    files: Mapping[str, Path]
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    left_over: frozenset[str]
    read: Callable[[str], Tensor]

    @classmethod
    def of(
        cls, checkpoint: OfficialCheckpoint, links: Mapping[str, list[Link]], model: UnifiedLM
    ) -> Template:
        """An official checkpoint as the template of another."""
        left_over = set()
        for part in PARTS:
            files = checkpoint.weights[part]
            used = {name for link in links[part] for name in link.theirs}
            left_over |= {name for name in files if canonical(part, name, model, files) not in used}
            left_over |= {name + PADDING_ROW for name in used if has_padding_row(name)}

        def read(name: str) -> Tensor:
            if name.endswith(PADDING_ROW):
                return checkpoint.weights[TOWER].tensor(name.removesuffix(PADDING_ROW))[-1]
            part = next(part for part in PARTS if name in checkpoint.weights[part])
            return checkpoint.weights[part].tensor(name)

        return cls(
            files=dict(_kept_files(checkpoint)),
            shapes={
                part: {name: entry.shape for name, entry in checkpoint.weights[part].items()}
                for part in PARTS
            },
            left_over=frozenset(left_over),
            read=read,
        )

    @classmethod
    def saved(cls, directory: Path) -> Template:
        """The template that `save` wrote. Raises UserError for one that cannot be read."""
        shapes = read_json(directory / NAMES)
        tensors = WeightFiles(directory)
        paths = [path for path in directory.rglob("*") if path.is_file()]
        return cls(
            files={
                path.relative_to(directory).as_posix(): path
                for path in paths
                if path not in (directory / NAMES, directory / LEFT_OVER)
            },
            shapes={part: {name: tuple(shape) for name, shape in shapes[part].items()} for part in PARTS},
            left_over=frozenset(tensors),
            read=tensors.tensor,
        )

    def save(self, directory: Path) -> None:
        """Write all of it into the new directory."""
        directory.mkdir()
        self.copy_files(directory)
        (directory / NAMES).write_text(json.dumps(self.shapes, indent=1), encoding="utf-8")
        tensors = {name: self.read(name).clone() for name in sorted(self.left_over)}
        save_file(tensors, directory / LEFT_OVER)

    def copy_files(self, directory: Path) -> None:
        """Everything but the tensors."""
        for place, source in self.files.items():
            (directory / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, directory / place)

    def with_padding_row(self, name: str, tensor: Tensor) -> Tensor:
        """An official codebook whose last row is the template's."""
        if name + PADDING_ROW not in self.left_over:
            return tensor
        row = self.read(name + PADDING_ROW).to(tensor.dtype)
        return torch.cat([tensor[:-1], row.unsqueeze(0)])


def _kept_files(checkpoint: OfficialCheckpoint) -> Iterator[tuple[str, Path]]:
    """config.json, the files of each part but its weights, and the SigLIP's config.json where it lies here."""
    directory = checkpoint.directory
    yield "config.json", directory / "config.json"
    for part in PARTS:
        for path in sorted((directory / part).iterdir()):
            weights = path.name.endswith(".index.json")
            if path.is_file() and path.suffix in KEPT_SUFFIXES and not weights:
                yield f"{part}/{path.name}", path
    siglip = str(checkpoint.parts[TOWER]["rqvaesiglip"].get("pretrained_model") or "")
    for place in (siglip, f"{TOWER}/{siglip}"):
        file = directory / place / "config.json"
        if siglip and not Path(siglip).is_absolute() and file.is_file():
            yield f"{place}/config.json", file
