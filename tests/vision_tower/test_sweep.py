"""A sweep of tiny towers: finished, failed and repeated points, its table and page; one process and several."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from tiny_tower import IMAGE_SIZE, stand_in_config

from vilau_common.config import HYDRA_VERSION_BASE, registered
from vilau_common.data.loader import LoaderConfig
from vilau_common.errors import UserError
from vilau_common.training import TrainingConfig
from vilau_vision_tower.data import CaptionDataConfig
from vilau_vision_tower.sweep import launch as launch_module
from vilau_vision_tower.sweep import point as point_module
from vilau_vision_tower.sweep.config import SweepPointConfig
from vilau_vision_tower.sweep.launch import first_point, sweep, with_group
from vilau_vision_tower.task import TowerTask
from vilau_vision_tower.train import SCHEMA_GROUPS
from vilau_vision_tower.train_clip import TrainClipConfig, train_clip

CONF = Path(__file__).parents[2] / "conf"
TINY = [
    f"data.image_size={IMAGE_SIZE}",
    "data.hard_negatives=0",
    "data.loader={batch_size: 8, workers: 0, shuffle_buffer: 16}",
    "tower.quantizer.code_dim=4",
    "tower.decoder={width: 16, layers: 1, heads: 2}",
    "training.steps=2",
    "training.schedule.warmup_steps=1",
    "training.log_every=1",
    "evaluation.threads=1",
]


@pytest.fixture(scope="module")
def clip_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP trained for a step."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("runs") / "clip"
    loader = LoaderConfig(batch_size=8, workers=0, shuffle_buffer=16)
    train_clip(
        TrainClipConfig(
            directory=str(directory),
            data=CaptionDataConfig(directory=str(scenes), image_size=IMAGE_SIZE, loader=loader),
            clip=stand_in_config(text_length=40),
            training=TrainingConfig(steps=1),
        )
    )
    return directory


@pytest.fixture
def common(scenes: Path, clip_run: Path, tmp_path: Path) -> list[str]:
    """Overrides of every sweep here."""
    return [
        f"directory={tmp_path / 'sweep'}",
        f"data.directory={scenes}",
        f"tower.clip.pretrained={clip_run}",
        *TINY,
    ]


def values(**swept: str) -> list[str]:
    names = {"K": "tower.quantizer.codebook_size", "D": "tower.quantizer.depth"}
    return [f"{names[name]}={value}" for name, value in swept.items()]


def table_of(directory: Path) -> dict[str, dict[str, str]]:
    with (directory / "sweep.csv").open(newline="") as file:
        return {row["point"]: row for row in csv.DictReader(file)}


def measured_in(directory: Path, point: str) -> dict[str, str]:
    """What the table has of a point, without the columns that it has for others only."""
    return {name: value for name, value in table_of(directory)[point].items() if value}


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its charts take longer than the towers."""
    monkeypatch.setattr(launch_module, "build_sweep_report", lambda table: table)


def test_a_failed_point_is_reported_and_does_not_stop_the_others(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        UserError, match=r"1 of 2 points in .* are not finished: K=1,D=2 failed .quantizer.codebook_"
    ):
        sweep([*common, *values(K="1,16", D="2")], CONF)  # a codebook needs two codes at least
    directory = tmp_path / "sweep"
    table = table_of(directory)
    assert list(table) == ["K=16,D=2", "K=1,D=2"], "finished ones first"
    good, bad = table.values()
    assert (bad["status"], good["status"]) == ("failed", "finished")
    assert bad["error"] == "quantizer.codebook_size is 1, but a codebook has 2 to 65,536 codes"
    assert bad["psnr"] == ""
    assert float(good["bits_per_position"]) == 8
    assert {
        "ssim",
        "read_back_accuracy",
        "codebook_perplexity_d1",
        "retrieval_image_to_text_r1",
        "zero_shot_top1",
    } <= good.keys()
    assert 0 < float(good["step_seconds"]) < float(good["train_seconds"])
    assert float(good["encode_pictures_per_second"]) > 0
    evaluated = json.loads((directory / "K=16,D=2" / "evaluation" / "results.json").read_text())
    assert float(good["psnr"]) == evaluated["tower/psnr"]
    assert "UserError" in (directory / "K=1,D=2" / "error.txt").read_text()
    page = (directory / "report" / "index.html").read_text()
    assert "1 of 2 points are finished" in page
    assert bad["error"] in page
    assert "K=1,D=2: failed: quantizer.codebook_size is 1" in capsys.readouterr().err


@pytest.mark.usefixtures("no_page")
def test_a_finished_point_is_not_run_again_and_keeps_its_numbers(
    common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep([*common, *values(K="16", D="1")], CONF)
    before = measured_in(tmp_path / "sweep", "K=16,D=1")
    assert before["psnr"]
    trained: list[str] = []
    train_tower = point_module.train_tower

    def recorded(config: Any) -> Any:
        trained.append(Path(config.directory).name)
        return train_tower(config)

    monkeypatch.setattr(point_module, "train_tower", recorded)
    sweep([*common, *values(K="16", D="1,2")], CONF)
    assert trained == ["K=16,D=2"]
    assert measured_in(tmp_path / "sweep", "K=16,D=1") == before
    with pytest.raises(UserError, match=r"was started with another configuration \(training.steps 2 -> 3"):
        sweep([*common, *values(K="16", D="1"), "training.steps=3"], CONF)
    assert measured_in(tmp_path / "sweep", "K=16,D=1") == before


@pytest.mark.usefixtures("no_page")
def test_a_signal_stops_the_sweep_and_the_next_start_goes_on(
    common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_step = TowerTask.after_step

    def stop(task: TowerTask, step: int) -> None:
        after_step(task, step)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TowerTask, "after_step", stop)
        with pytest.raises(SystemExit) as ended:
            sweep([*common, *values(K="8,16", D="1")], CONF)
    assert ended.value.code == 128 + signal.SIGTERM
    assert {name: row["status"] for name, row in table_of(tmp_path / "sweep").items()} == {
        "K=8,D=1": "stopped"
    }
    sweep([*common, *values(K="8,16", D="1")], CONF)
    assert {row["status"] for row in table_of(tmp_path / "sweep").values()} == {"finished"}
    lines = (tmp_path / "sweep" / "K=8,D=1" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "train/loss/l2" in line]
    assert steps == [1, 2], "it went on from its checkpoint"


@pytest.mark.usefixtures("no_page")
def test_what_the_points_stand_on_is_made_first(common: list[str], tmp_path: Path) -> None:
    world = f"source={{image_size: {IMAGE_SIZE}, train_count: 40, test_count: 8, held_out_count: 2}}"
    small = [*TINY[:3], "training.steps=1", "training.schedule.warmup_steps=0", "clip.patch_size=8"]
    listed = ", ".join(f"'{override}'" for override in small)
    places = {"data.directory": tmp_path / "data", "tower.clip.pretrained": tmp_path / "clip"}
    sweep(
        [
            *common,
            *(f"{name}={path}" for name, path in places.items()),
            f"first.prepare=['{world}']",
            f"first.clip=[{listed}]",
            *values(K="16", D="1"),
        ],
        CONF,
    )
    assert (tmp_path / "clip" / "model" / "config.json").is_file()
    assert table_of(tmp_path / "sweep")["K=16,D=1"]["status"] == "finished"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["tower.quantizer.dept=1,2"],
            r"tower.quantizer.dept is not a setting .*did you mean tower.quantizer.depth",
        ),
        (["tower.quantizer.depth=1,two"], r"tower.quantizer.depth expects int, got 'two'"),
        (["evaluation.lpip=alex"], r"evaluation.lpip is not a setting .*did you mean evaluation.lpips"),
        (["sweep=nothing"], r"sweep has no option 'nothing' \(there are codebook_depth, quantizers\)"),
        (["hydra/launcher=nothing"], r"launcher"),
        (["steps"], r"'steps' is no override: write key=value"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_runs(
    common: list[str], tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        sweep([*common, *overrides], CONF)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "sweep").glob("*/point.json"))


@pytest.mark.parametrize("file", sorted((CONF / "sweep").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_file_of_conf_sweep_composes(file: Path) -> None:
    point = first_point(with_group([f"sweep={file.stem}"]), CONF)
    assert point.directory.startswith("runs/")
    for name in ("Command", "Time", "Machine", "Expected"):
        assert f"# {name}: " in file.read_text()


def test_slurm_is_submitits_launcher() -> None:
    with (
        registered("train_tower", SweepPointConfig, SCHEMA_GROUPS),
        initialize_config_dir(str(CONF), version_base=HYDRA_VERSION_BASE),
    ):
        overrides = [*with_group([]), "hydra/launcher=slurm", "hydra.launcher.partition=gpu"]
        launcher = compose("train_tower", overrides, return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.gpus_per_node, launcher.max_num_timeout) == ("gpu", 1, 3)


@pytest.mark.usefixtures("no_page")
def test_kinds_of_quantisers_are_swept_beside_rq(common: list[str], tmp_path: Path) -> None:
    """Each kind of conf/sweep/quantizers.yaml trains and is measured; FSQ by its levels."""
    kinds = {"rq_256": 256, "fsq_240": 240, "fsq_1000": 1000, "lfq_256": 256, "simvq_256": 256}
    own = [override for override in common if "code_dim" not in override]
    sweep(["sweep=quantizers", *own, "tower.quantizer.depth=1"], CONF)
    table = table_of(tmp_path / "sweep")
    assert {name: row["status"] for name, row in table.items()} == {
        f"{kind},D=1": "finished" for kind in kinds
    }
    for kind, size in kinds.items():
        row = table[f"{kind},D=1"]
        assert float(row["codebook_size"]) == size
        assert float(row["psnr"]) > 0 and float(row["codebook_perplexity_d0"]) >= 1


LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.usefixtures("no_page")
def test_points_run_in_processes_of_their_own(common: list[str], tmp_path: Path, launcher: str) -> None:
    with pytest.raises(UserError, match="1 of 2 points"):
        sweep([*common, *values(K="1,16", D="1"), *LAUNCHERS[launcher]], CONF)
    statuses = {name: row["status"] for name, row in table_of(tmp_path / "sweep").items()}
    assert statuses == {"K=1,D=1": "failed", "K=16,D=1": "finished"}
