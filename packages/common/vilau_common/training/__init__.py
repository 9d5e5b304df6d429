"""The training loop and what it is configured with; see `loop` for what a step does."""

from vilau_common.training.config import (
    LoggerConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
    operational_keys,
)
from vilau_common.training.interrupt import TrainingInterrupted
from vilau_common.training.loop import TrainingResult, train
from vilau_common.training.state import TrainingDiverged
from vilau_common.training.task import MAIN, Loader, ParameterGroup, Sharding, StepOutput, Task

__all__ = [
    "MAIN",
    "Loader",
    "LoggerConfig",
    "OptimizerConfig",
    "ParameterGroup",
    "ScheduleConfig",
    "Sharding",
    "StepOutput",
    "Task",
    "TrainingConfig",
    "TrainingDiverged",
    "TrainingInterrupted",
    "TrainingResult",
    "operational_keys",
    "train",
]
