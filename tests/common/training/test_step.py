"""One optimiser step: accumulation, clipping, whose gradient goes where, averaged weights, precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy_compare import assert_same, lines_of
from toy_training import WIDTH, GanTask, ToyLoader, ToyTask, plain_config, run_toy, toy_config

from vilau_common.training import OptimizerConfig, ParameterGroup, ScheduleConfig, StepOutput, Task
from vilau_common.training.ema import WeightAverage


def weights_after(
    path: Path, task: Task, loader: ToyLoader | None = None, **changes: Any
) -> dict[str, torch.Tensor]:
    run_toy(path, plain_config(**changes), task, loader)
    return {name: value.clone() for name, value in task.network.state_dict().items()}


def test_two_half_batches_make_one_batch(tmp_path: Path) -> None:
    class Halves(ToyLoader):
        def __iter__(self):
            for batch in super().__iter__():
                for half in range(2):
                    yield {name: value.chunk(2)[half] for name, value in batch.items()}

    whole = weights_after(tmp_path / "whole", ToyTask(dropout=0.0), ToyLoader(8))
    halves = weights_after(tmp_path / "halves", ToyTask(dropout=0.0), Halves(8), accumulation=2)
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, rtol=1e-5, atol=1e-6)


def test_a_task_sees_all_batches_of_a_step_before_the_first(tmp_path: Path) -> None:
    """The very ones that the step then takes, and none of the next step's."""

    class CountingTask(ToyTask):
        seen: list[list[torch.Tensor]] = []
        taken: list[torch.Tensor] = []

        def before_step(self, batches):
            assert len(self.taken) == 3 * len(self.seen)
            self.seen.append([batch["x"] for batch in batches])

        def training_step(self, network, batch, step):
            assert len(self.seen) == step + 1
            self.taken.append(batch["x"])
            return super().training_step(network, batch, step)

    task = CountingTask()
    weights_after(tmp_path, task, steps=4, accumulation=3)
    together = [x for step in task.seen for x in step]
    assert [len(step) for step in task.seen] == [3] * 4
    assert all(torch.equal(x, y) for x, y in zip(together, task.taken, strict=True))
    assert not torch.equal(together[0], together[1])


class PlanesTask(ToyTask):
    """Losses linear in two weights, each wanting both of them to move, so that any leak turns a direction."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Module()
        self.network.main = nn.Parameter(torch.zeros(()))
        self.network.other = nn.Parameter(torch.zeros(()))

    def parameter_groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup(name="main", parameters=[self.network.main]),
            ParameterGroup(name="other", parameters=[self.network.other], optimizer="other"),
        ]

    def training_step(self, network, batch, step):
        main, other = self.network.main, self.network.other
        shared = main * other  # a part of the graph that both losses go through
        return StepOutput({"main": main - 100 * other + shared, "other": other - 100 * main + shared})

    def after_step(self, step):
        pass

    def evaluate(self):
        return {}


def test_each_optimiser_follows_its_own_loss_alone(tmp_path: Path) -> None:
    """Adam's first step is the sign of the gradient times the learning rate."""
    changes = {"steps": 1, "optimizer": OptimizerConfig(learning_rate=0.1)}
    after = weights_after(tmp_path, PlanesTask(), **changes)
    assert after["main"].item() == pytest.approx(-0.1)
    assert after["other"].item() == pytest.approx(-0.1)


def test_optimisers_have_settings_of_their_own(tmp_path: Path) -> None:
    """By name, and the group's scale on top."""
    task = GanTask()
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    changes = {
        "steps": 1,
        "optimizer": OptimizerConfig(learning_rate=0.1),
        "other_optimizers": {"discriminator": OptimizerConfig(learning_rate=0.02, betas=(0.5, 0.9))},
    }
    after = weights_after(tmp_path, task, **changes)
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert moved["generator.weight"] == pytest.approx(0.1, rel=1e-3)
    assert moved["discriminator.weight"] == pytest.approx(0.01, rel=1e-3)


def test_an_optimiser_waits_for_its_loss(tmp_path: Path) -> None:
    task = GanTask(begin=8)
    before = task.network.discriminator.weight.clone()
    weights_after(tmp_path / "before", task, steps=8)
    assert torch.equal(task.network.discriminator.weight, before)
    task = GanTask(begin=8)
    weights_after(tmp_path / "after", task, steps=9)
    assert not torch.equal(task.network.discriminator.weight, before)


def test_gradients_are_clipped_and_their_norm_before_it_is_logged(tmp_path: Path) -> None:
    class SeeingTask(ToyTask):
        def training_step(self, network, batch, step):
            output = super().training_step(network, batch, step)
            return StepOutput({"main": output.losses["main"] * 1000})

    class Gradients(torch.optim.AdamW):
        norm: float

        def step(self, closure=None):
            gradients = [weight.grad for group in self.param_groups for weight in group["params"]]
            Gradients.norm = torch.nn.utils.get_total_norm(gradients).item()
            return super().step(closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Gradients)
        run_toy(tmp_path, plain_config(steps=1, gradient_clip=0.5), SeeingTask())
    assert Gradients.norm == pytest.approx(0.5, rel=1e-4)
    assert lines_of(tmp_path)[0]["gradient_norm"] > 100


def test_averaged_weights_follow_the_formula() -> None:
    weight = nn.Parameter(torch.zeros(3))
    average = WeightAverage({"weight": weight}, decay=0.4)
    expected = 0.0
    for count in range(12):
        weight.data.fill_(count)
        average.update()
        decay = min(0.4, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * count
    assert average.state()["weight"].tolist() == pytest.approx([expected] * 3, rel=1e-6)


def test_averages_of_half_precision_weights_are_exact() -> None:
    """Small changes would be lost in bfloat16."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    average = WeightAverage({"weight": weight}, decay=0.999)
    average.updates = 100_000  # past the ramp
    weight.data.fill_(2)
    average.update()
    assert average.state()["weight"].dtype == torch.float32
    assert average.state()["weight"].item() == pytest.approx(1.001)


def test_averaged_weights_are_used_for_all_but_training(tmp_path: Path) -> None:
    """Evaluation, samples and the saved model see the averages; training goes on with its own weights."""
    seen: dict[str, torch.Tensor] = {}

    class Looking(ToyTask):
        def evaluate(self):
            assert not self.network.training
            assert not torch.is_grad_enabled()
            seen["evaluate"] = self.network.first.weight.clone()
            return {}

        def save_samples(self, directory, step):
            seen["samples"] = self.network.first.weight.clone()

        def save_model(self, directory):
            seen["model"] = self.network.first.weight.clone()

    task = Looking()
    run_toy(tmp_path, toy_config(steps=10), task)
    assert torch.equal(seen["evaluate"], seen["samples"])
    assert torch.equal(seen["evaluate"], seen["model"])
    assert not torch.equal(seen["evaluate"], task.network.first.weight)
    assert task.network.training
    assert not (tmp_path / "samples" / "step_000010").exists()  # nothing was put there


def test_bfloat16_is_for_the_forward_pass_only(tmp_path: Path) -> None:
    """Products in bfloat16; outputs, weights and checkpoints in float32; the network is plain again afterwards."""
    dtypes: set[torch.dtype] = set()

    class Watching(ToyTask):
        def __init__(self) -> None:
            super().__init__()
            self.network.second.register_forward_hook(lambda module, given, output: dtypes.add(output.dtype))

        def training_step(self, network, batch, step):
            output = network(batch["x"])
            assert output.dtype == torch.float32
            return StepOutput({"main": output.square().mean()})

    task = Watching()
    run_toy(tmp_path / "first", toy_config(mixed_precision="bf16"), task)
    assert dtypes == {torch.bfloat16}
    assert {weight.dtype for weight in task.network.parameters()} == {torch.float32}
    dtypes.clear()
    task.network(torch.zeros(1, WIDTH))
    assert dtypes == {torch.float32}
    run_toy(tmp_path / "second", toy_config(), task)  # another precision in the same process
    assert dtypes == {torch.float32}


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    first = weights_after(tmp_path / "first", ToyTask())
    torch.rand(5)  # what happened before must not matter
    second = weights_after(tmp_path / "second", ToyTask())
    assert_same(first, second, "weights")


def test_tied_weights_survive_a_checkpoint(tmp_path: Path) -> None:
    class Tied(ToyTask):
        def __init__(self) -> None:
            super().__init__()
            self.network.twin = nn.Linear(WIDTH, 16)
            self.network.twin.weight = self.network.first.weight

        def save_model(self, directory):
            pass

    whole = weights_after(tmp_path / "whole", Tied(), checkpoint_every=3)
    (tmp_path / "whole" / "finished.json").unlink()
    again = Tied()
    run_toy(tmp_path / "whole", plain_config(checkpoint_every=3), again)
    assert_same(dict(again.network.state_dict()), whole, "weights")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (lambda n: [ParameterGroup(name="a", parameters=list(n.first.parameters()))], "of no group: second"),
        (
            lambda n: [
                ParameterGroup(name="a", parameters=list(n.parameters())),
                ParameterGroup(name="b", parameters=[n.first.weight]),
            ],
            "in the groups 'a' and 'b'",
        ),
        (
            lambda n: [ParameterGroup(name="a", parameters=list(n.parameters()), matrices=True)],
            "matrices=True",
        ),
        (
            lambda n: [ParameterGroup(name="a", parameters=[*n.parameters(), nn.Parameter(torch.zeros(1))])],
            "frozen or not the network's",
        ),
    ],
)
def test_every_weight_is_in_one_group(tmp_path: Path, groups: Any, message: str) -> None:
    task = ToyTask()
    task.parameter_groups = lambda: groups(task.network)
    with pytest.raises(ValueError, match=message):
        run_toy(tmp_path, task=task)


def test_the_learning_rate_is_logged_as_used(tmp_path: Path) -> None:
    schedule = ScheduleConfig(kind="linear", warmup_steps=2)
    run_toy(tmp_path, plain_config(steps=6, log_every=1, schedule=schedule), ToyTask())
    rates = [line["learning_rate"] for line in lines_of(tmp_path) if "learning_rate" in line]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_matmul_precision_holds_in_the_steps_and_not_after(tmp_path: Path) -> None:
    seen = []

    class Looking(ToyTask):
        def training_step(self, network, batch, step):
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled()))
            return super().training_step(network, batch, step)

    before = torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled()
    run_toy(tmp_path / "run", plain_config(matmul_precision="medium"), Looking())
    flash = torch.cuda.is_available()  # on a CPU its products are slow in oneDNN
    assert set(seen) == {("medium", flash)}
    assert (torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled()) == before
