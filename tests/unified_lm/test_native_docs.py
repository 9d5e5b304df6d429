"""docs/huggingface.md: its code runs as it stands. And `vilau export`, which it begins with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_lm import CAPTIONS, IMAGE_SIZE, POSITIONS, D, make_model
from transformers import PreTrainedTokenizerFast

from vilau_unified_lm.cli import main
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.native.ids import prompt_ids
from vilau_unified_lm.native.model import VilaUForMultimodalLM
from vilau_unified_lm.session import Session
from vilau_unified_lm.vocabulary import Vocabulary

PAGE = Path(__file__).parents[2] / "docs" / "huggingface.md"


@pytest.fixture
def run(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, tmp_path: Path) -> Path:
    """A whole line's run directory as far as an export reads it."""
    path = tmp_path / "run"
    torch.manual_seed(1)
    make_model(vocabulary).save_pretrained(path / "lm" / "model")
    tokenizer.save_pretrained(path / "lm" / "model")
    settings = {"data": {"directory": "codes", "mixture": {"text": 0.0, "questions": 1.0}, "blend": []}}
    (path / "lm" / "config.yaml").write_text(yaml.safe_dump(settings))
    (path / "results.json").write_text(
        json.dumps({"lm/question_accuracy": 0.5, "lm/question_accuracy/colour": 1.0})
    )
    (path / "machine.json").write_text(json.dumps({"commit": "abc"}))
    (path / "evaluation").mkdir()
    sampling = {"temperature": 0.5, "top_k": 5, "top_p": 0.8, "guidance": 1.5}
    evaluated = {"directory": "run", "data": "data", "sampling": sampling}
    (path / "evaluation" / "config.yaml").write_text(yaml.safe_dump(evaluated))
    return path


def test_the_page_s_code_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "run", "model", "--license", "apache-2.0"]) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    Image.fromarray(pixels).save("picture.png")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert isinstance(names["answer"], str)
    assert [picture.size for picture in names["pictures"]] == [(IMAGE_SIZE, IMAGE_SIZE)] * 2  # type: ignore[attr-defined]
    assert len(names["film"]) == 3  # type: ignore[arg-type]
    assert names["codes"].shape == (2, 3, 3, D)  # type: ignore[attr-defined]
    assert {path.name for path in Path("tuned").iterdir()} >= {
        "README.md",
        "model.safetensors",
        "tokenizer.json",
    }


def test_an_exported_run_draws_as_it_was_evaluated(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    assert main(["export", str(run), str(output), "--license", "apache-2.0"]) == 0
    model = VilaUForMultimodalLM.from_pretrained(output)
    session = Session.open(output)
    prompt = session.builder.drawing_prompt(CAPTIONS[0])
    ids = torch.tensor([prompt_ids(prompt, model.vocabulary)])
    drawn = model.generate(ids, generation_mode="image", seed=4)
    how = Sampling(temperature=0.5, top_k=5, top_p=0.8, guidance=1.5)
    codes = session.engine.draw([prompt], session.builder.drawing_prompt(""), how, [4])
    assert torch.equal(drawn, model.vocabulary.visual_ids(codes).view(1, POSITIONS * D))
    card = (output / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "apache-2.0" and head["pipeline_tag"] == "any-to-any"
    assert "| `lm/question_accuracy` | 0.5 |" in card and "colour" not in card
    assert "questions: 1.0" in card and "commit abc" in card


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "run"], "run exists; give a directory that does not"),
        (["nowhere", "out"], "nowhere"),
        (["empty", "out"], "no unified LM in empty"),
    ],
)
def test_what_is_not_exported(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert main(["export", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not Path("out").exists()
