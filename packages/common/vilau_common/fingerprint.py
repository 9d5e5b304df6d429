"""Short names for what a training depends on and no configuration shows: equal contents, equal name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vilau_common.errors import UserError

FINGERPRINT_LENGTH = 16


def weights_fingerprint(path: Path) -> str:
    """Of a weights file, or of all in a model's directory (*.safetensors, or else *.bin), 16 hex digits.

    Raises UserError where there are none.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    if not files:
        raise UserError(f"no weights in {path}: expected *.safetensors")
    digest = hashlib.sha256()
    for weights in files:
        with weights.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:FINGERPRINT_LENGTH]


def vocabulary_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """Of a text tokenizer's tokens and their ids, 16 hex digits."""
    return json_fingerprint(sorted(vocabulary.items()))


def json_fingerprint(value: Any) -> str:
    """Of a value of JSON's types, 16 hex digits; the order of lists and keys counts."""
    text = json.dumps(value)
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]
