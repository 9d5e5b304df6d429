"""GenEval (Ghosh et al. 2023) and MJHQ-30K (Li et al. 2024): prompts to draw, written as their own judges read them.

geneval   evaluation_metadata.jsonl: {"tag": …, "prompt": …, …} a line
          -> 00000/metadata.jsonl, 00000/samples/0000.png …, as GenEval's evaluate_images.py reads them
mjhq      meta_data.json: {id: {"category": …, "prompt": …}}, mjhq30k_imgs/<category>/<id>.jpg
          -> <category>/<id>.png
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vilau_common.errors import UserError
from vilau_unified_lm.evaluation.public.files import Layout, entry, read_json, read_json_lines

GENEVAL_KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@dataclass(kw_only=True)
class GenevalConfig:
    """file: evaluation_metadata.jsonl. samples: pictures drawn of each prompt (GenEval: 4)."""

    file: str | None = None
    samples: int = 4

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"geneval.samples is {self.samples}; draw 1 picture of each prompt at least")


@dataclass(kw_only=True)
class MjhqConfig:
    """directory: where the official files are."""

    directory: str | None = None


@dataclass(frozen=True)
class DrawnPrompt:
    """id: unlike all others of the set. file: where its drawing goes, inside the set's folder of drawings.

    reference: a true picture of the prompt, where the data set has them.
    """

    id: str
    text: str
    kind: str
    file: str
    reference: Path | None = None


class PromptSet(ABC):
    """A public data set of prompts to draw."""

    name: ClassVar[str]

    @abstractmethod
    def read(self) -> list[DrawnPrompt]:
        """All drawings to be made. Raises UserError for files or pictures that are missing or malformed."""

    @abstractmethod
    def prepare(self, directory: Path) -> None:
        """Write what the data set's own judge wants beside the drawings in `directory`; after `read`."""


class Geneval(PromptSet):
    name: ClassVar[str] = "geneval"

    def __init__(self, config: GenevalConfig) -> None:
        assert config.file is not None
        self.file, self.samples = Path(config.file), config.samples
        if not self.file.is_file():
            raise UserError(
                f"geneval.file={self.file}: there is no such file; evaluation_metadata.jsonl comes from "
                "github.com/djghosh13/geneval (prompts/)"
            )
        self.records: list[dict[str, Any]] = []

    def read(self) -> list[DrawnPrompt]:
        drawn = []
        for number, (where, record) in enumerate(read_json_lines(self.file)):
            kind = entry(record, "tag", str, where)
            if kind not in GENEVAL_KINDS:
                raise UserError(f"{where}: the tag is {kind!r}, not one of {', '.join(GENEVAL_KINDS)}")
            self.records.append(record)
            text = entry(record, "prompt", str, where)
            for sample in range(self.samples):
                file = f"{number:05}/samples/{sample:04}.png"
                drawn.append(DrawnPrompt(f"{number:05}/{sample:04}", text, kind, file))
        return drawn

    def prepare(self, directory: Path) -> None:
        for number, record in enumerate(self.records):
            folder = directory / f"{number:05}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metadata.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")


class Mjhq(PromptSet):
    name: ClassVar[str] = "mjhq"

    def __init__(self, config: MjhqConfig) -> None:
        assert config.directory is not None
        source = "huggingface.co/datasets/playgroundai/MJHQ-30K"
        self.layout = Layout("mjhq.directory", Path(config.directory), source)

    def read(self) -> list[DrawnPrompt]:
        file = self.layout.file("meta_data.json")
        records = read_json(file)
        if not isinstance(records, dict) or not records:
            raise UserError(f"{file}: expected an object with a category and a prompt for each picture")
        drawn = []
        for id_, record in records.items():
            where = f"{file}, picture {id_}"
            kind = entry(record, "category", str, where)
            if any(Path(name).name != name for name in (id_, kind)):
                raise UserError(f"{where}: its id and category {kind!r} name files, and must be plain names")
            reference = self.layout.directory / "mjhq30k_imgs" / kind / f"{id_}.jpg"
            text = entry(record, "prompt", str, where)
            drawn.append(DrawnPrompt(id_, text, kind, f"{kind}/{id_}.png", reference))
        self.layout.check_pictures(item.reference for item in drawn if item.reference is not None)
        return drawn

    def prepare(self, directory: Path) -> None:
        """Its judge, clean-fid, reads the pictures alone."""
