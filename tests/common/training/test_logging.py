"""metrics.jsonl, log.txt, Weights & Biases, and the line that a person reads."""

from __future__ import annotations

import io
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toy_compare import lines_of
from toy_training import run_toy, toy_config

from vilau_common.errors import UserError
from vilau_common.run import RunDirectory
from vilau_common.training import LoggerConfig
from vilau_common.training import progress as progress_module
from vilau_common.training.logging import MetricsFile, messages_to
from vilau_common.training.progress import TrainingProgress


def test_numbers_that_json_has_no_word_for(tmp_path: Path) -> None:
    file = MetricsFile(RunDirectory(tmp_path), "toy")
    file.write(1, {"a": float("nan"), "b": 0.1})
    file.close()
    assert lines_of(tmp_path) == [{"step": 1, "stage": "toy", "a": None, "b": 0.1}]


def test_messages_go_to_the_log_and_warnings_to_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(sys, "stderr", screen := io.StringIO())
    before = root.level
    with messages_to(RunDirectory(tmp_path)):
        logging.getLogger("anything").info("quiet")
        logging.getLogger("anything").warning("loud")
    assert screen.getvalue() == "loud\n"
    text = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "INFO anything: quiet" in text
    assert "WARNING anything: loud" in text
    assert root.level == before
    assert root.handlers == []


def test_wandb_must_be_installed_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"training\.logger\.wandb=true needs the package wandb"):
        run_toy(tmp_path, toy_config(logger=LoggerConfig(wandb=True)))


def test_wandb_gets_the_metrics_and_a_resumed_run_its_old_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []

    def init(**settings: Any) -> Any:
        started.append(settings)
        return types.SimpleNamespace(
            log=lambda values, step: logged.append((step, values)), finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    run_toy(tmp_path / "run", toy_config(logger=LoggerConfig(wandb=True)))
    (tmp_path / "run" / "finished.json").unlink()
    run_toy(tmp_path / "run", toy_config(logger=LoggerConfig(wandb=True)))
    assert started[0]["mode"] == "offline"
    assert started[0]["name"] == "run"
    assert started[0]["config"]["steps"] == 40
    assert started[0]["id"] == started[1]["id"]
    assert [step for step, values in logged if "loss/main" in values] == [*range(3, 40, 3), 40]


def shown(terminal: bool, monkeypatch: pytest.MonkeyPatch, unit_count: int = 64) -> str:
    """What 30 steps of a second each show."""
    output = io.StringIO()
    clock = iter(range(10_000))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(clock)))
    console = Console(file=output, force_terminal=terminal, width=120)
    with TrainingProgress("tower", 30, "images", True, console) as progress:
        for step in range(1, 31):
            progress.advance(step, unit_count, 0.5)
        progress.say("a word")
    return output.getvalue()


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, every ten seconds, at the end: stage, step, loss, speed, time left."""
    lines = shown(False, monkeypatch).splitlines()
    assert lines == [
        "tower 2/30  loss 0.5  64 images/s  0:28 left",
        "tower 12/30  loss 0.5  64 images/s  0:18 left",
        "tower 22/30  loss 0.5  64 images/s  0:08 left",
        "tower 30/30  loss 0.5  64 images/s",
        "tower: a word",
    ]


def test_speed_without_a_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "1 steps/s" in shown(False, monkeypatch, unit_count=0)


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(True, monkeypatch)
    for part in ("tower", "30/30", "loss 0.5", "64 images/s", "left", "a word"):
        assert part in text
