"""Checkpoints that are damaged, old, too large for the disk or unreadable."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest
from toy_compare import EndState
from toy_training import StoppingTask, ToyLoader, run_toy, toy_config

from vilau_common import atomic
from vilau_common.errors import UserError
from vilau_common.training import TrainingInterrupted
from vilau_common.training import checkpoint as checkpoints


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "manifest", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, uninterrupted: EndState, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """The run goes on from the one before, and says so."""
    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, task=StoppingTask(12, signal.SIGTERM))
    newest = checkpoints.path_of(tmp_path / "checkpoints", 13)
    weights = newest / checkpoints.WEIGHTS
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "flip":
        contents = bytearray(weights.read_bytes())
        contents[-1] ^= 1
        weights.write_bytes(contents)
    elif damage == "delete":
        weights.unlink()
    elif damage == "manifest":
        (newest / checkpoints.MANIFEST).write_text("{", encoding="utf-8")
    else:
        (newest / checkpoints.MANIFEST).unlink()
    with caplog.at_level(logging.WARNING):
        run_toy(tmp_path)
    assert "step_000013 is damaged" in caplog.text
    assert "going on from step 10" in (tmp_path / "log.txt").read_text(encoding="utf-8")
    EndState.of(tmp_path).assert_equal(uninterrupted)
    assert not newest.exists()


def test_a_damaged_checkpoint_is_replaced_even_when_one_is_kept(tmp_path: Path) -> None:
    """Going over the damaged one's step again must not cost the good one that was just written."""
    config = toy_config(keep_checkpoints=1)
    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, config, StoppingTask(4, signal.SIGTERM))
    fake = checkpoints.path_of(tmp_path / "checkpoints", 20)
    fake.mkdir()
    (fake / checkpoints.MANIFEST).write_text('{"trainer.json": {"bytes": 1, "crc32": 1}}', encoding="utf-8")
    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, config, StoppingTask(16, signal.SIGTERM))
    assert checkpoints.newest_good(tmp_path / "checkpoints") == checkpoints.path_of(fake.parent, 17)
    assert not fake.exists()


def test_without_any_good_checkpoint_nothing_is_started_anew(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, task=StoppingTask(12, signal.SIGTERM))
    for file in (tmp_path / "checkpoints").glob("*/trainer.json"):
        file.write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="no checkpoint in .* can be read"):
        run_toy(tmp_path)


def test_old_checkpoints_are_pruned(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_config(keep_checkpoints=3))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_000030", "step_000035", "step_000040"]


def test_a_full_disk_is_told_and_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors, file):
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainingInterrupted):
        run_toy(tmp_path, task=StoppingTask(4, signal.SIGTERM))
    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match=r"step_000010 cannot be written: No space left on device"):
        run_toy(tmp_path)
    assert checkpoints.newest_good(tmp_path / "checkpoints") == checkpoints.path_of(
        tmp_path / "checkpoints", 5
    )


def test_an_unreadable_loader_state_is_found_when_it_is_written(tmp_path: Path) -> None:
    class Opaque(ToyLoader):
        def state_dict(self):
            return {"path": tmp_path}

    with pytest.raises(RuntimeError, match="plain values and tensors"):
        run_toy(tmp_path, loader=Opaque())


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """A failure leaves the old one; a success replaces it."""
    place = tmp_path / "model"
    with atomic.new_directory(place) as directory:
        (directory / "old").write_text("", encoding="utf-8")
    with pytest.raises(FileNotFoundError), atomic.new_directory(place) as directory:
        (directory / "missing" / "new").write_text("", encoding="utf-8")
    assert [path.name for path in place.iterdir()] == ["old"]
    with atomic.new_directory(place) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "new").write_text("", encoding="utf-8")
    assert [path.name for path in place.iterdir()] == ["sub"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
