"""A point of a sweep: the settings of one tower's training, of its evaluation, and of what all points stand on."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from vilau_vision_tower.evaluation.config import TowerMetricsConfig
from vilau_vision_tower.train import TrainTowerConfig


@dataclass(kw_only=True)
class FirstStagesConfig:
    """Made once, before the points, where it does not stand: overrides of the command that makes it; null: never.

    prepare: the data set `data.directory`. clip: the stand-in `tower.clip.pretrained`, trained on it.
    """

    prepare: list[str] | None = None
    clip: list[str] | None = None


@dataclass(kw_only=True)
class SweepPointConfig(TrainTowerConfig):
    """directory: the sweep's; a point's run has its own directory there. evaluation: on the data's test split."""

    evaluation: TowerMetricsConfig = field(default_factory=TowerMetricsConfig)
    first: FirstStagesConfig = field(default_factory=FirstStagesConfig)

    def training_config(self, directory: str) -> TrainTowerConfig:
        """What `train_tower` takes, for a run in `directory`."""
        settings = {each.name: getattr(self, each.name) for each in fields(TrainTowerConfig)}
        return TrainTowerConfig(**{**settings, "directory": directory})
