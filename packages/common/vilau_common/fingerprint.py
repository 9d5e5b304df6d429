"""A short name for weights on disk: equal weights, equal name."""

from __future__ import annotations

import hashlib
from pathlib import Path

FINGERPRINT_LENGTH = 16


def weights_fingerprint(directory: Path) -> str:
    """Of all *.safetensors in a model's directory, 16 hex digits. Raises FileNotFoundError where there are none."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{directory} holds no *.safetensors")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:FINGERPRINT_LENGTH]
