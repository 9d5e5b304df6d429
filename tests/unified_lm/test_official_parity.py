"""What the official code computed from two checkpoints, computed here (tests/assets/parity/README.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from official_parity import measure, must_be_equal

CASES = Path(__file__).parents[1] / "assets" / "parity"
RELATIVE = 1e-4


@pytest.mark.parametrize("case", ["shared_codebook", "separate_codebooks"])
def test_parity(case: str) -> None:
    found = measure(CASES / case)
    assert len(found) == 17
    wrong = {
        name: value
        for name, value in found.items()
        if not value <= (0 if must_be_equal(name) else 1 if name == "pixels, of 255" else RELATIVE)
    }
    assert not wrong


@pytest.mark.parametrize("case", ["shared_codebook", "separate_codebooks"])
def test_lower_precision_runs(case: str) -> None:
    """In bfloat16, as the released weights are: near, and codes looked up in float32."""
    found = measure(CASES / case, torch.bfloat16)
    assert found["features z_q"] < 1e-6
    assert found["depth logits"] < 0.05 and found["LM logits"] < 0.1 and found["reconstruction"] < 0.1
