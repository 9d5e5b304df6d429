"""The run directory as a whole, seeds, git."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from vilau_common.errors import UserError
from vilau_common.run import (
    RunDirectory,
    git_state,
    isolated_random,
    random_state,
    seed_everything,
    set_random_state,
)

CONFIG = {
    "seed": 0,
    "training": {"steps": 10, "betas": (0.9, 0.95), "threads": None},
    "data": {"name": "scenes"},
}


def test_a_claim_is_recorded_and_may_be_repeated(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "new" / "run")
    run.claim(CONFIG)
    assert yaml.safe_load(run.config.read_text(encoding="utf-8"))["training"]["steps"] == 10
    run.claim(CONFIG)


def test_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim(CONFIG)
    other = {"seed": 0, "training": {"steps": 20, "betas": (0.9, 0.95), "threads": 2}, "model": {"width": 3}}
    with pytest.raises(UserError) as caught:
        run.claim(other, ignore=["training.threads"])
    message = str(caught.value)
    assert "training.steps 10 -> 20" in message
    assert 'data.name "scenes" -> absent' in message
    assert "model.width absent -> 3" in message
    assert "threads" not in message
    assert "delete" in message
    run.claim({**CONFIG, "model": {"width": 3}}, ignore=["model"])


def test_entries_of_a_list_are_told_and_ignored_one_by_one(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim({"blend": [{"directory": "a", "weight": 1.0}, {"directory": "b", "weight": 2.0}]})
    moved = {"blend": [{"directory": "x", "weight": 1.0}, {"directory": "y", "weight": 3.0}]}
    with pytest.raises(UserError, match=r"\(blend.1.weight 2.0 -> 3.0\)"):
        run.claim(moved, ignore=["blend.0.directory", "blend.1.directory"])


def test_many_differences_are_counted(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim({f"key{index}": 0 for index in range(9)})
    with pytest.raises(UserError, match="and 4 more"):
        run.claim({f"key{index}": 1 for index in range(9)})


def test_a_file_in_the_directorys_place(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="a file is in its place"):
        RunDirectory(tmp_path / "run").claim(CONFIG)


def test_results_add_up(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.add_results({"tower/psnr": 25.0, "a": 1})
    run.add_results({"a": 2})
    assert run.results.read_text(encoding="utf-8") == '{\n "tower/psnr": 25.0,\n "a": 2\n}\n'


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002 - the global one is meant


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UserError, match="seed is -1; it is 0 or more"):
        seed_everything(-1)


def test_seeds_decide_every_generator() -> None:
    seed_everything(1)
    first = draw()
    seed_everything(1)
    assert draw() == first
    seed_everything(1, rank=1)
    assert all(one != other for one, other in zip(draw(), first, strict=True))


def test_random_state_survives_a_safe_file(tmp_path: Path) -> None:
    seed_everything(2)
    random.gauss(0, 1)  # leaves a second number behind
    np.random.standard_normal()  # noqa: NPY002
    torch.save(random_state(), tmp_path / "state.pt")
    expected = (random.gauss(0, 1), np.random.standard_normal(), draw())  # noqa: NPY002
    draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (random.gauss(0, 1), np.random.standard_normal(), draw()) == expected  # noqa: NPY002


def test_isolated_random_leaves_no_trace() -> None:
    seed_everything(3)
    expected = draw()
    seed_everything(3)
    with isolated_random(4):
        inside = draw()
    assert draw() == expected
    with isolated_random(4):
        assert draw() == inside


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) == git_state(tmp_path / "missing")
    assert git_state(tmp_path).commit is None
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    state = git_state(tmp_path)
    assert state.commit is not None
    assert len(state.commit) == 40
    assert state.dirty is False
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert git_state(tmp_path).dirty is True
