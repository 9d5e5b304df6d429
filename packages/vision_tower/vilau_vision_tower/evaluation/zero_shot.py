"""Zero-shot classification (Radford et al. 2021, section 3.1.4): pictures by their codes, classes by their names.

A class is the mean of its prompts' unit embeddings, brought back to unit length; a picture belongs to the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vilau_common.errors import UserError
from vilau_vision_tower.clip import TextEncoder
from vilau_vision_tower.evaluation.metric import EvaluatedBatch, Metric, NotComputed, shares_within

PROMPTS = Path(__file__).parent / "prompts"
IMAGENET, FOLDERS = "imagenet", "folders"
TEXTS_AT_ONCE = 512
TOP = (1, 5)


@dataclass(frozen=True)
class ClassList:
    """names: of each class, for the prompts. folders: class folder -> class, where the list or the data tell them."""

    names: list[str]
    folders: dict[str, int]

    def number(self, label: int | str) -> int:
        """The class of a picture's label, a number or a class folder. UserError: the list does not have it."""
        number = self.folders.get(label, -1) if isinstance(label, str) else label
        if not 0 <= number < len(self.names):
            raise UserError(
                f"a picture is of the class {label!r}, which the list of {len(self.names)} classes has not"
            )
        return number


def read_classes(classes: str, folders: list[str]) -> ClassList:
    """`imagenet`; `folders`, by whose names; or a text file with a class a line: its name, or FOLDER<tab>name.

    folders: of the data, sorted; where lines do not name theirs, the first line is that of the first folder. UserError:
    a file that cannot be read so. NotComputed: there are no folders.
    """
    if classes == FOLDERS:
        if not folders:
            raise NotComputed("classes=folders: the pictures lie in no class folders")
        names = [folder.replace("_", " ") for folder in folders]
        return ClassList(names, {folder: number for number, folder in enumerate(folders)})
    path = PROMPTS / "imagenet_classes.txt" if classes == IMAGENET else Path(classes)
    pairs = [line.rpartition("\t")[::2] for line in read_lines(path, "classes")]
    names = [name for _, name in pairs]
    named = [folder for folder, _ in pairs if folder]
    if named and len(named) < len(names):
        raise UserError(f"classes={classes}: some lines name a folder (FOLDER<tab>name) and others do not")
    if not named and folders and len(folders) != len(names):
        raise UserError(
            f"classes={classes} has {len(names)} lines, but the pictures lie in {len(folders)} class folders; where "
            "they are not the same, each line names its own: FOLDER<tab>name"
        )
    if named and (strange := sorted(set(folders) - set(named))):
        raise UserError(
            f"classes={classes} does not name {len(strange)} of the {len(folders)} class folders that the pictures lie "
            f"in, such as {strange[0]}: add FOLDER<tab>name for each"
        )
    return ClassList(names, {folder: number for number, folder in enumerate(named or folders)})


def read_templates(templates: str) -> list[str]:
    """`openai_imagenet` (80 of them), `simple` (a photo of a {}), `article` (a {}), or a text file, one a line."""
    inside = PROMPTS / f"{templates}.txt"
    lines = read_lines(inside if inside.is_file() else Path(templates), "templates")
    for line in lines:
        if line.count("{}") != 1:
            raise UserError(f"templates={templates}: {line!r} must hold {{}} once, for the class name")
    return lines


def read_lines(path: Path, setting: str) -> list[str]:
    """The lines of a text file that are neither empty nor comments (#). UserError: there are none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{setting}={path}: there is no such text file") from None
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise UserError(f"{setting}={path} has no lines")
    return lines


class ZeroShot(Metric):
    """zero_shot_top1 and, of more than five classes, zero_shot_top5: the share of pictures with a label."""

    def __init__(self, text_encoder: TextEncoder, classes: ClassList, templates: list[str]) -> None:
        self.classes = classes
        self.weights = class_embeddings(text_encoder, classes.names, templates)
        self.ranks: list[Tensor] = []

    def update(self, batch: EvaluatedBatch) -> None:
        labelled = [index for index, picture in enumerate(batch.pictures) if picture.label is not None]
        if not labelled:
            return
        labels = [batch.pictures[index].label for index in labelled]
        targets = torch.tensor([self.classes.number(label) for label in labels if label is not None])
        scores = batch.embeddings[labelled] @ self.weights.T
        self.ranks.append(class_ranks(scores, targets.to(scores.device)).cpu())

    def result(self) -> dict[str, float]:
        if not self.ranks:
            raise NotComputed(
                "zero-shot accuracy needs labels, but no picture has one: class folders, or a field `cls` in shards"
            )
        tops = [top for top in TOP if top < len(self.classes.names)]
        named = zip(tops, shares_within(self.ranks, tops), strict=True)
        return {f"zero_shot_top{top}": share for top, share in named}


def class_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """How many classes come before the right one: scores float [B, classes], targets int64 [B] -> int64 [B].

    Of equal classes the first wins, as with argmax: OpenAI's list has two missiles and two sunglasses. NaN never wins.
    """
    own = scores.gather(1, targets[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < targets[:, None]
    return torch.where(earlier, ~(scores < own), ~(scores <= own)).sum(dim=1)


def class_embeddings(text_encoder: TextEncoder, names: list[str], templates: list[str]) -> Tensor:
    """Unit vectors float [classes, C]."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    parts = [
        text_encoder.embed(prompts[start : start + TEXTS_AT_ONCE])
        for start in range(0, len(prompts), TEXTS_AT_ONCE)
    ]
    return F.normalize(torch.cat(parts).unflatten(0, (len(names), len(templates))).mean(dim=1), dim=-1)
