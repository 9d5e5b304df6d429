"""Settings: wrong ones are refused in a sentence, also on the way through OmegaConf."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf
from toy_training import toy_config

from vilau_common.errors import UserError
from vilau_common.training import (
    LoggerConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
    operational_keys,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: OptimizerConfig(name="sgd"),
            "training.optimizer.name must be one of adamw, muon, not 'sgd'",
        ),
        (lambda: OptimizerConfig(learning_rate=0.0), "optimizer.learning_rate must be above 0"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), r"optimizer.betas must lie in \[0, 1\)"),
        (lambda: OptimizerConfig(eps=-1.0), "optimizer.eps must be above 0, not -1"),
        (lambda: OptimizerConfig(weight_decay=-0.1), "optimizer.weight_decay must be 0 or more, not -0.1"),
        (
            lambda: OptimizerConfig(muon_momentum=1.0),
            r"optimizer.muon_momentum must lie in \[0, 1\), not 1.0",
        ),
        (lambda: ScheduleConfig(kind="cosin"), "schedule.kind must be one of cosine,"),
        (lambda: ScheduleConfig(final_ratio=1.5), "schedule.final_ratio"),
        (lambda: TrainingConfig(steps=0), "training.steps must be 1 or more, not 0"),
        (lambda: TrainingConfig(steps=1, evaluate_every=0), "evaluate_every must be 1 or more"),
        (lambda: TrainingConfig(steps=1, mixed_precision="fp16"), "mixed_precision must be one of no, bf16"),
        (
            lambda: TrainingConfig(steps=1, matmul_precision="low"),
            "matmul_precision must be one of highest, high, medium",
        ),
        (lambda: TrainingConfig(steps=1, ema_decay=1.0), "ema_decay must lie between 0 and 1"),
        (lambda: TrainingConfig(steps=1, gradient_clip=0.0), "gradient_clip must be above 0"),
        (
            lambda: TrainingConfig(steps=1, schedule=ScheduleConfig(warmup_steps=2)),
            r"\(2\) exceeds steps \(1\)",
        ),
    ],
)
def test_wrong_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_settings_of_an_optimiser_that_there_is_not_are_refused() -> None:
    config = TrainingConfig(steps=1, other_optimizers={"discriminater": OptimizerConfig()})
    with pytest.raises(
        UserError,
        match="other_optimizers.discriminater is of no optimiser of this training; the others are disc",
    ):
        config.check_optimizers(("discriminator",))
    with pytest.raises(UserError, match="it has no others"):
        config.check_optimizers(())
    TrainingConfig(steps=1).check_optimizers(("discriminator",))


def test_it_is_a_structured_config() -> None:
    """Types survive the way through OmegaConf, and its checks work."""
    schema = OmegaConf.structured(TrainingConfig)
    given = {
        "steps": 5,
        "ema_decay": 0.9,
        "evaluate_every": None,
        "optimizer": {"name": "muon", "betas": [0.8, 0.9]},
        "other_optimizers": {"discriminator": {"learning_rate": 0.5}},
    }
    config = OmegaConf.to_object(OmegaConf.merge(schema, given))
    assert config == TrainingConfig(
        steps=5,
        ema_decay=0.9,
        optimizer=OptimizerConfig(name="muon", betas=(0.8, 0.9)),
        other_optimizers={"discriminator": OptimizerConfig(learning_rate=0.5)},
    )
    assert isinstance(config.optimizer.betas, tuple)
    with pytest.raises(Exception, match="learning_rat"):
        OmegaConf.merge(schema, {"optimizer": {"learning_rat": 1.0}})
    with pytest.raises(Exception, match="five"):
        OmegaConf.merge(schema, {"steps": "five"})
    with pytest.raises(UserError, match="must be one of"):
        OmegaConf.to_object(OmegaConf.merge(schema, {"steps": 5, "schedule": {"kind": "cosin"}}))


def test_the_digest_is_of_what_the_numbers_depend_on() -> None:
    digest = toy_config().digest()
    assert toy_config(keep_checkpoints=9, threads=2, logger=LoggerConfig(wandb=True)).digest() == digest
    assert toy_config(steps=41).digest() != digest
    assert toy_config(optimizer=OptimizerConfig(eps=1e-7)).digest() != digest
    assert "training.keep_checkpoints" in operational_keys()
