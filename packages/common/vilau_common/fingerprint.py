"""Short names for what a training depends on and no configuration shows: equal contents, equal name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from vilau_common.errors import UserError

FINGERPRINT_LENGTH = 16


def weights_fingerprint(directory: Path) -> str:
    """Of all *.safetensors in a model's directory, 16 hex digits. Raises UserError where there are none."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(f"no weights in {directory}: expected *.safetensors")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:FINGERPRINT_LENGTH]


def vocabulary_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """Of a text tokenizer's tokens and their ids, 16 hex digits."""
    text = json.dumps(sorted(vocabulary.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]
