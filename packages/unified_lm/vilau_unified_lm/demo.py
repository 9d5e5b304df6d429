"""`vilau demo`: the whole line from nothing to a report, stage by stage, each stage once.

Every stage is a command of its own (`vilau train-tower experiment=scenes/tower ...`) with a run directory of its
own under the demo's; what is finished is not repeated, and what was killed goes on.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from vilau_common import atomic
from vilau_common.data.prepare import prepare
from vilau_common.report import build_report
from vilau_common.run import RunDirectory, git_state
from vilau_unified_lm.cli_verbs import VERBS
from vilau_unified_lm.evaluation.run import evaluate
from vilau_unified_lm.train import train_lm
from vilau_vision_tower.tokenize import tokenize
from vilau_vision_tower.train import train_tower
from vilau_vision_tower.train_clip import train_clip

SECONDS = "seconds.json"
GIB = 2**30


@dataclass(kw_only=True)
class StageOverrides:
    """More overrides for a stage, as its own command takes them: "stages.tower=['tower.quantizer.depth=4']"."""

    prepare: list[str] = field(default_factory=list)
    clip: list[str] = field(default_factory=list)
    tower: list[str] = field(default_factory=list)
    tokenize: list[str] = field(default_factory=list)
    lm: list[str] = field(default_factory=list)
    evaluate: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class DemoConfig:
    """name: the experiment's folder in conf/experiment/; directory: the run's; data: the prepared data set's."""

    name: str
    directory: str
    data: str
    stages: StageOverrides = field(default_factory=StageOverrides)


def demo(config: DemoConfig) -> None:
    """Run every stage that is not finished, write results.json and report/index.html, and say where they are."""
    run = RunDirectory(config.directory)
    run.create()
    here, data = config.directory, config.data
    clock = StageClock(run.path / SECONDS)
    paths = {
        "prepare": [f"directory={data}"],
        "clip": [f"directory={here}/clip", f"data.directory={data}"],
        "tower": [f"directory={here}/tower", f"data.directory={data}", f"tower.clip.pretrained={here}/clip"],
        "tokenize": [f"tower_directory={here}/tower", f"data={data}", f"directory={here}/codes"],
        "lm": [
            f"directory={here}/lm",
            f"data.directory={here}/codes",
            f"lm.tower={here}/tower",
            f"lm.text_tokenizer={data}/tokenizer",
        ],
        "evaluate": [f"directory={here}", f"data={data}"],
    }
    # All settings are read before anything is computed: a typo in the last stage must not cost the first ones.
    settings = {
        stage: _settings(stage, config.name, overrides, getattr(config.stages, stage))
        for stage, overrides in paths.items()
    }
    machine = run.path / "machine.json"
    if not machine.is_file():  # the commit that the numbers belong to is the one that the line began at
        atomic.write_text(machine, json.dumps(asdict(describe_machine(config.name)), indent=1))
    clock.add("start", time.time() - psutil.Process().create_time())
    functions: dict[str, Callable[[Any], object]] = {
        "prepare": prepare,
        "clip": train_clip,
        "tower": train_tower,
        "tokenize": tokenize,
        "lm": train_lm,
    }
    for stage, function in functions.items():
        with clock.measured(stage):
            function(settings[stage])
    wanted = json.dumps({"settings": repr(settings["evaluate"]), "lm": RunDirectory(f"{here}/lm").finished()})
    marker = run.path / "evaluation" / "evaluated.json"
    if not marker.is_file() or marker.read_text(encoding="utf-8") != wanted:
        with clock.measured("evaluate"):
            evaluate(settings["evaluate"])
        atomic.write_text(marker, wanted)
    run.add_results(clock.results())
    page = build_report(run.path)
    print(f"results: {run.results}\nreport:  {page}")


def _settings(stage: str, experiment: str, paths: list[str], more: list[str]) -> Any:
    command = {"clip": "train-clip", "tower": "train-tower", "lm": "train-lm"}.get(stage, stage)
    verb = next(verb for verb in VERBS if verb.name == command)
    return verb.load([f"experiment={experiment}/{stage}", *paths, *more])


class StageClock:
    """Seconds spent in each stage, over all starts of the demo (a killed start's unfinished stage is not known)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    def add(self, stage: str, seconds: float) -> None:
        """`start` counts the first start alone; a stage's starts add up."""
        if stage == "start" and stage in self.seconds:
            return
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        atomic.write_text(self.path, json.dumps(self.seconds, indent=1))

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        """Count the block to a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(stage, time.monotonic() - start)

    def results(self) -> dict[str, float]:
        """time/<stage>_seconds and time/total_seconds."""
        named = {f"time/{stage}_seconds": seconds for stage, seconds in self.seconds.items()}
        return {**named, "time/total_seconds": sum(self.seconds.values())}


@dataclass
class Machine:
    cpu: str
    cores: int
    memory_gib: float
    torch: str
    python: str
    commit: str | None
    dirty: bool | None
    date: str
    experiment: str


def describe_machine(experiment: str) -> Machine:
    """What the numbers of a run belong to."""
    git = git_state()
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / GIB, 1),
        torch=torch.__version__,
        python=platform.python_version(),
        commit=git.commit,
        dirty=git.dirty,
        date=datetime.now(UTC).date().isoformat(),
        experiment=experiment,
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
