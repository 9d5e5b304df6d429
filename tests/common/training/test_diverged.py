"""Numbers that are not finite end a run before they reach the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_compare import lines_of
from toy_training import FailingTask, ToyTask, run_toy, toy_config

from vilau_common.errors import UserError
from vilau_common.training import StepOutput, TrainingDiverged
from vilau_common.training import checkpoint as checkpoints
from vilau_common.training.state import TrainingState


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, value: float) -> None:
    """One sentence names the step, the loss and the last good checkpoint; neither weights nor metrics hold it."""
    with pytest.raises(TrainingDiverged) as caught:
        run_toy(tmp_path, task=FailingTask(12, value))
    newest = checkpoints.path_of(tmp_path / "checkpoints", 10)
    message = str(caught.value)
    assert f"loss/main became {value} at step 13" in message
    assert str(newest) in message
    assert "learning_rate" in message
    assert isinstance(caught.value, UserError)
    assert checkpoints.newest_good(tmp_path / "checkpoints") == newest
    assert max(line["step"] for line in lines_of(tmp_path)) == 12
    assert message in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_a_loss_that_is_looked_at_late_spoils_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU only logged steps are looked at, to save waiting, and whatever is to be written."""
    real = TrainingState.__init__

    def as_on_a_gpu(self, *arguments):
        real(self, *arguments)
        self._looks_each_step = False

    monkeypatch.setattr(TrainingState, "__init__", as_on_a_gpu)
    with pytest.raises(TrainingDiverged, match="loss/main became nan at step 13"):
        run_toy(tmp_path, toy_config(log_every=20), FailingTask(12, float("nan")))
    assert checkpoints.newest_good(tmp_path / "checkpoints") == checkpoints.path_of(
        tmp_path / "checkpoints", 10
    )


def test_an_infinite_gradient_stops_the_run(tmp_path: Path) -> None:
    """The loss may be finite while its gradient is not: sqrt at 0."""

    class InfiniteGradient(ToyTask):
        def training_step(self, network, batch, step):
            output = super().training_step(network, batch, step)
            return StepOutput({"main": (output.losses["main"] * 0).sqrt()})

    with pytest.raises(
        TrainingDiverged, match=r"gradient_norm became nan at step 1; there is no checkpoint yet"
    ):
        run_toy(tmp_path, task=InfiniteGradient())


def test_spoilt_weights_are_never_written(tmp_path: Path) -> None:
    class SpoilingTask(ToyTask):
        def after_step(self, step):
            if step == 10:
                self.network.first.weight.data[0, 0] = float("inf")

    with pytest.raises(TrainingDiverged, match="a weight became infinite"):
        run_toy(tmp_path, task=SpoilingTask())
    assert checkpoints.newest_good(tmp_path / "checkpoints") == checkpoints.path_of(
        tmp_path / "checkpoints", 5
    )
