"""docs/huggingface.md does what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from native import make_run, random_pictures
from PIL import Image
from tiny_lm import POSITIONS
from transformers import AutoModelForMultimodalLM, PreTrainedTokenizerFast

from vilau_unified_lm.cli import main
from vilau_unified_lm.vocabulary import Vocabulary

DOCUMENT = Path(__file__).parents[2] / "docs" / "huggingface.md"
SNIPPET = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)


def test_the_snippets(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerFast,
    vocabulary: Vocabulary,
) -> None:
    (tmp_path / "models").mkdir()
    make_run(tmp_path / "runs" / "demo", tokenizer, vocabulary)
    for name, picture in zip(("photo.png", "other.png"), random_pictures(0, 2), strict=True):
        Image.fromarray(picture).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    text = DOCUMENT.read_text(encoding="utf-8")
    snippets = SNIPPET.findall(text)
    assert text.count("```") == 2 * len(snippets) + 2  # all of them are run, but for the list of tests
    for language, code in snippets:
        if language == "python":
            exec(compile(code, str(DOCUMENT), "exec"), names)
            continue
        for line in code.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "vilau" and main(arguments) == 0
    assert isinstance(names["said"], str) and len(names["answers"]) == 2
    assert Image.open("circle.png").size == Image.open("drawn.png").size
    assert len(names["frames"]) == 2 and names["parts"]
    assert names["features"].shape == (1, POSITIONS, 32)
    tuned = AutoModelForMultimodalLM.from_pretrained("models/tuned")
    assert torch.equal(tuned(**names["inputs"]).logits, names["logits"])
