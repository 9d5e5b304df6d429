"""Image editing: {"source": "a.png", "instruction": "make it night", "target": "b.png"}, a record a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import INSTRUCTION, text_field
from vilau_common.data.sources.records import RecordsConfig, RecordSource


@dataclass(kw_only=True)
class EditsConfig(RecordsConfig):
    """Triples of a picture, an instruction and the picture changed."""


class Edits(RecordSource):
    """See the module's docstring."""

    name = "edits"
    noun = "edits"

    def named(self, record: dict[str, Any]) -> list[str]:
        names = [record.get("source"), record.get("target")]
        if not all(isinstance(name, str) for name in names):
            raise BadSample("no edit: expected an object with source, instruction and target")
        return [str(name) for name in names]

    def document(self, record: dict[str, Any]) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
        instruction = text_field(record, INSTRUCTION)
        return [self.picture(name) for name in self.named(record)], {INSTRUCTION: instruction.strip()}
