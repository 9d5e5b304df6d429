"""The whole line in one command: every stage once, then results and a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vilau_common.data.shards import read_shards
from vilau_common.data.worlds.registry import world_of
from vilau_common.data.worlds.scenes.grammar import parse
from vilau_common.data.worlds.scenes.world import ScenesWorld
from vilau_unified_lm.cli import main

SHORT = "'training.steps=3', 'training.schedule.warmup_steps=1', 'training.checkpoint_every=null'"
SEEN = {
    "verifier/scene_accuracy",
    "tower/psnr",
    "tower/read_back_accuracy",
    "tower/hard_negative_accuracy",
    "tower/codebook_usage_d0",
    "lm/question_accuracy",
    "lm/draw_object_accuracy",
    "lm/draw_object_accuracy/position",
    "lm/draw_scene_accuracy",
    "lm/caption_scene_accuracy",
    "lm/video_question_direction_accuracy",
    "lm/draw_video_object_accuracy",
    "lm/edit_accuracy",
    "lm/shots_4_accuracy",
    "lm/story_picture_accuracy",
    "held_out/lm/draw_object_accuracy",
    "held_out/lm/edit_accuracy",
    "time/total_seconds",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def arguments(root: Path) -> list[str]:
    """The smoke demo of all document forms, shorter still."""
    counts = "source={train_count: 300, test_count: 14, held_out_count: 7, document_test_count: 4}"
    return [
        "demo",
        "experiment=smoke/full",
        f"directory={root / 'run'}",
        f"data={root / 'data'}",
        f"stages.prepare=['{counts}']",
        *(f"stages.{stage}=[{SHORT}]" for stage in ("clip", "tower", "lm")),
        "stages.evaluate=['questions=14', 'drawings=7', 'hard_negative_pictures=5']",
    ]


def test_demo_runs_every_stage_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(root)) == 0
    run = root / "run"
    results = json.loads((run / "results.json").read_text())
    assert results.keys() >= SEEN
    assert results["verifier/scene_accuracy"] == 1.0
    page = (run / "report" / "index.html").read_text()
    assert 'src="http' not in page and 'href="http' not in page
    models = {path: path.stat().st_mtime_ns for path in run.glob("*/model/model.safetensors")}
    assert {path.parts[-3] for path in models} == {"clip", "tower", "lm"}
    evaluated = (run / "evaluation" / "examples.json").stat().st_mtime_ns
    assert main(arguments(root)) == 0
    assert models == {path: path.stat().st_mtime_ns for path in models}
    assert evaluated == (run / "evaluation" / "examples.json").stat().st_mtime_ns
    assert capsys.readouterr().out.count("finished already") == 3


def test_guidance_is_swept_over_the_evaluated_prompts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = root / "run"
    assert main(["guidance", str(run), "5", "2", "1"]) == 0
    assert capsys.readouterr().out.split()[-1] == str(run / "guidance" / "guidance.png")
    found = json.loads((run / "guidance" / "results.json").read_text())
    assert list(found) == ["1.0", "2.0", "5.0"]
    evaluated = json.loads((run / "results.json").read_text())
    # The run was evaluated with guidance 2.
    for key, value in found["2.0"].items():
        prefix, _, name = key.rpartition("draw_")
        assert evaluated[f"{prefix}lm/draw_{name}"] == value
    assert "held_out/draw_object_accuracy" in found["2.0"]
    assert len((run / "guidance" / "table.md").read_text().splitlines()) == 2 + 3 + 2
    assert Image.open(run / "guidance" / "guidance.png").width > 500


def test_mistake_in_the_last_stage_costs_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [*arguments(root)[:-1], "stages.evaluate=['question=14']", f"directory={root / 'other'}"]
    assert main(wrong) == 2
    assert "questions" in capsys.readouterr().err
    assert not (root / "other" / "clip").exists()


def test_stored_negatives_never_name_what_is_held_out(root: Path) -> None:
    world = world_of(root / "data" / "train")
    assert isinstance(world, ScenesWorld)
    held_out = world.config.pairs()
    for _, fields in read_shards(root / "data" / "train"):
        record = json.loads(fields["json"])
        assert record["negatives"] and record["captions"][0] not in record["negatives"]
        for caption in record["negatives"]:
            said = parse(caption)
            assert said is not None
            assert not any((item.colour, item.shape) in held_out for item in said)
