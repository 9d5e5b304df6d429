"""A user's mistakes end in one clear sentence, before anything is computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_line import Line

from vilau_common.data.shards import ShardWriter, read_shards
from vilau_unified_lm.cli import main


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence that a failing command prints."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("vilau: error: ") and "\n" not in error and "Traceback" not in error
    return error


def test_misspelt_key(line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = told([*line.arguments("train-tower", tmp_path / "run"), "tower.quantiser.depth=2"], capsys)
    assert "tower.quantiser" in error and "tower.quantizer" in error
    assert not (tmp_path / "run").exists()


def test_wrong_type(line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = told([*line.arguments("train-tower", tmp_path / "run"), "tower.quantizer.depth=two"], capsys)
    assert "tower.quantizer.depth" in error and "two" in error


def test_missing_tower(line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = told([*line.arguments("train-lm", tmp_path / "run"), "lm.tower=nowhere"], capsys)
    assert "nowhere" in error and "train-tower" in error
    assert not (tmp_path / "run").exists()


def test_missing_clip(line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = told([*line.arguments("train-tower", tmp_path / "run"), "tower.clip.pretrained=nowhere"], capsys)
    assert "nowhere" in error and "train-clip" in error


def test_data_not_prepared(line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = told([*line.arguments("train-tower", tmp_path / "run"), "data.directory=nowhere"], capsys)
    assert "not prepared" in error and "vilau prepare" in error


def test_codes_of_another_tower(line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line.arguments("train-tower", tmp_path / "tower", steps=3), "seed=1"]) == 0
    error = told([*line.arguments("train-lm", tmp_path / "run"), f"lm.tower={tmp_path / 'tower'}"], capsys)
    assert "vilau tokenize" in error


def test_another_configuration_in_the_same_run(
    line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.arguments("train-clip", tmp_path / "run", steps=3)) == 0
    error = told([*line.arguments("train-clip", tmp_path / "run", steps=3), "seed=1"], capsys)
    assert "seed 0 -> 1" in error


def test_loss_that_is_not_a_number(line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    broken = "training.optimizer={name: adamw, learning_rate: 1.0e+30}"
    capsys.readouterr()
    assert main([*line.arguments("train-tower", run), broken, "training.gradient_clip=null"]) == 2
    error = capsys.readouterr().err
    assert "learning rate" in error and "Traceback" not in error
    assert not (run / "model").exists()


def test_corrupt_picture_is_skipped_and_counted(
    line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(line.root / "data", data)
    shutil.rmtree(data / "train")
    samples = list(read_shards(line.root / "data" / "train"))
    with ShardWriter(data / "train", {}, samples_per_shard=100) as writer:
        for number, (key, fields) in enumerate(samples):
            broken = {**fields, "png": fields["png"][:40]} if number == 5 else fields
            writer.write(key, broken)
    arguments = line.arguments("train-clip", tmp_path / "run", steps=30)
    assert main([*arguments, f"data.directory={data}"]) == 0
    (log,) = (tmp_path / "run").glob("bad_samples_*.jsonl")
    assert samples[5][0] in log.read_text()
    error = told([*line.arguments("train-clip", tmp_path / "strict"), f"data.directory={data}",
                  "data.loader.max_bad_share=0.0", "training.steps=60"], capsys)  # fmt: skip
    assert "bad" in error and samples[5][0] in error


def test_prompts_and_pictures_of_use(line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(line.arguments("train-lm", run / "lm", steps=3)) == 0
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((40, 30, 3), 200, np.uint8)).save(picture)
    assert main(["ask", str(run), str(picture), "how many objects?"]) == 0
    assert main(["draw", str(run), "a red circle", "-o", str(tmp_path / "out.png"), "--count", "2"]) == 0
    assert main(["reconstruct", str(run), str(picture), "-o", str(tmp_path / "back.png")]) == 0
    assert (tmp_path / "out_0.png").is_file() and (tmp_path / "back.png").is_file()
    assert "top-k" in told(["draw", str(run), "a", "--top-k", "0", "-o", str(tmp_path / "x.png")], capsys)
    assert "guidance" in told(
        ["draw", str(run), "a", "--guidance", "-1", "-o", str(tmp_path / "x.png")], capsys
    )
    long = "circle " * 400
    assert "context" in told(["draw", str(run), long, "-o", str(tmp_path / "x.png")], capsys)
    picture.write_bytes(b"no picture")
    assert "cannot be read" in told(["ask", str(run), str(picture), "what?"], capsys)
