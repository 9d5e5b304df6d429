"""The verbs that Hydra configures: which code each one calls, found only when it is called.

A verb's module has its entry function, the dataclass that the function takes, and, where children of that come in
kinds, a constant SCHEMA_GROUPS for `vilau_common.config.load_config`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Verb:
    """One verb. module, schema and function are names, so that the table costs no import."""

    name: str
    summary: str
    config: str  # conf/<config>.yaml
    module: str
    schema: str
    function: str
    sweeps: bool = False  # its function takes overrides, with several values each, and Hydra's own
    trains: bool = False  # Hydra's launchers can run it elsewhere

    def load(self, overrides: Sequence[str], config_directory: Path | None = None) -> Any:
        """The verb's configuration, of its schema; of a sweep, its first point's. UserError: see `load_config`."""
        from vilau_common.config import conf_directory, load_config

        module = importlib.import_module(self.module)
        if self.is_launched(overrides):
            overrides = [override for override in overrides if not override.startswith("hydra")]
        if self.sweeps:
            return module.first_point(module.with_group(overrides), conf_directory(config_directory))
        return load_config(
            self.config,
            overrides,
            getattr(module, self.schema),
            groups=getattr(module, "SCHEMA_GROUPS", None),
            directory=config_directory,
        )

    def is_launched(self, overrides: Sequence[str]) -> bool:
        """Whether the overrides of a training name a launcher, to run it as a job."""
        return self.trains and any(override.startswith("hydra/launcher=") for override in overrides)

    def launch(self, overrides: Sequence[str], config_directory: Path | None = None) -> None:
        """Run the training as a job and wait for its end. UserError: see `vilau_common.launch.multirun`."""
        from vilau_common.launch import Training

        Training(self.config, self.module, self.schema, self.function).launch(overrides, config_directory)

    def entry(self) -> Callable[..., Any]:
        """The function that takes the configuration; of a sweep, overrides and the directory of the files."""
        function: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
        return function


VERBS = (
    Verb(
        name="demo",
        summary="Do the whole line: data, CLIP, tower, codes, LM, evaluation, report.",
        config="demo",
        module="vilau_unified_lm.demo",
        schema="DemoConfig",
        function="demo",
    ),
    Verb(
        name="prepare",
        summary="Turn a source of pictures and texts into shards.",
        config="prepare",
        module="vilau_common.data.prepare",
        schema="PrepareConfig",
        function="prepare",
    ),
    Verb(
        name="train-clip",
        summary="Train the CLIP stand-in that the tower starts from.",
        config="train_clip",
        module="vilau_vision_tower.train_clip",
        schema="TrainClipConfig",
        function="train_clip",
        trains=True,
    ),
    Verb(
        name="train-tower",
        summary="Train the vision tower.",
        config="train_tower",
        module="vilau_vision_tower.train",
        schema="TrainTowerConfig",
        function="train_tower",
        trains=True,
    ),
    Verb(
        name="evaluate-tower",
        summary="Evaluate a vision tower on any pictures.",
        config="evaluate_tower",
        module="vilau_vision_tower.evaluation.run",
        schema="EvaluateTowerConfig",
        function="evaluate_tower",
    ),
    Verb(
        name="sweep",
        summary="Train and evaluate a tower for each of several values of some settings, and compare them.",
        config="train_tower",
        module="vilau_vision_tower.sweep.launch",
        schema="SweepPointConfig",
        function="sweep",
        sweeps=True,
    ),
    Verb(
        name="tokenize",
        summary="Turn a data set's pictures into codes, once, with a trained tower.",
        config="tokenize",
        module="vilau_vision_tower.tokenize",
        schema="TokenizeConfig",
        function="tokenize",
    ),
    Verb(
        name="train-lm",
        summary="Train the unified LM on texts and a tower's codes.",
        config="train_lm",
        module="vilau_unified_lm.train",
        schema="TrainLmConfig",
        function="train_lm",
        trains=True,
    ),
    Verb(
        name="train-vila",
        summary="Train VILA, the baseline that reads a CLIP's features instead of codes.",
        config="train_vila",
        module="vilau_unified_lm.vila.train",
        schema="TrainVilaConfig",
        function="train_vila",
        trains=True,
    ),
    Verb(
        name="evaluate",
        summary="Evaluate a run and write its results.json.",
        config="evaluate",
        module="vilau_unified_lm.evaluation.run",
        schema="EvaluateConfig",
        function="evaluate",
    ),
    Verb(
        name="evaluate-public",
        summary="Evaluate a unified LM or a VILA on public data sets in their official files.",
        config="evaluate_public",
        module="vilau_unified_lm.evaluation.public.run",
        schema="EvaluatePublicConfig",
        function="evaluate_public",
    ),
)
