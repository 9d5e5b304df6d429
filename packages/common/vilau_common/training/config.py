"""The training loop's settings. Plain keyword-only dataclasses, usable as Hydra structured configs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from vilau_common.errors import UserError

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "constant", "linear", "warmup_stable_decay")
PRECISIONS = ("no", "bf16")
PARALLEL = ("ddp", "fsdp2")
MATMUL_PRECISIONS = ("highest", "high", "medium")


@dataclass(kw_only=True)
class OptimizerConfig:
    """One optimiser. `muon` treats the groups marked `matrices=True` and leaves the rest to AdamW."""

    name: str = "adamw"  # adamw | muon
    learning_rate: float = 1e-3  # one for both: Muon's updates are scaled to AdamW's size
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0  # decoupled; a parameter group may have its own
    muon_momentum: float = 0.95
    muon_iterations: int = 5  # of Newton-Schulz

    def __post_init__(self) -> None:
        self.betas = (self.betas[0], self.betas[1])  # a list, when it comes from YAML
        _one_of("optimizer.name", self.name, OPTIMIZERS)
        _require(self.learning_rate > 0, f"optimizer.learning_rate must be above 0, not {self.learning_rate}")
        for beta in self.betas:
            _require(0 <= beta < 1, f"optimizer.betas must lie in [0, 1), not {list(self.betas)}")
        _require(self.eps > 0, f"optimizer.eps must be above 0, not {self.eps}")
        _require(self.weight_decay >= 0, f"optimizer.weight_decay must be 0 or more, not {self.weight_decay}")
        _require(
            0 <= self.muon_momentum < 1,
            f"optimizer.muon_momentum must lie in [0, 1), not {self.muon_momentum}",
        )
        _require(
            self.muon_iterations >= 1,
            f"optimizer.muon_iterations must be 1 or more, not {self.muon_iterations}",
        )


@dataclass(kw_only=True)
class ScheduleConfig:
    """How the learning rate goes: up linearly over `warmup_steps`, then by `kind` down to `final_ratio`."""

    kind: str = "cosine"  # cosine | constant | linear | warmup_stable_decay
    warmup_steps: int = 0
    final_ratio: float = 0.0  # of the peak, at the end; `constant` stays at the peak
    decay_fraction: float = 0.2  # of all steps: the last part, in which warmup_stable_decay decays linearly

    def __post_init__(self) -> None:
        _one_of("schedule.kind", self.kind, SCHEDULES)
        _require(self.warmup_steps >= 0, f"schedule.warmup_steps must be 0 or more, not {self.warmup_steps}")
        _require(
            0 <= self.final_ratio <= 1, f"schedule.final_ratio must lie in [0, 1], not {self.final_ratio}"
        )
        _require(
            0 < self.decay_fraction <= 1,
            f"schedule.decay_fraction must lie in (0, 1], not {self.decay_fraction}",
        )


@dataclass(kw_only=True)
class LoggerConfig:
    """Where metrics go beside the run's own metrics.jsonl, which is always written."""

    wandb: bool = False  # needs the package wandb; offline when there is no API key
    project: str = "vilau"
    name: str | None = None  # the run's name there; None: the run directory's


@dataclass(kw_only=True)
class TrainingConfig:
    """One training run. A count of steps is always one of optimiser steps."""

    steps: int
    accumulation: int = 1  # batches for one step, on each process
    # With several processes: each keeps the whole model (ddp), or its part of it (fsdp2, see `sharding`).
    parallel: str = "ddp"
    gradient_clip: float | None = 1.0  # largest norm of one optimiser's gradient; None: off
    log_every: int = 20
    evaluate_every: int | None = None  # None: only at the end
    sample_every: int | None = None  # None: only at the end
    checkpoint_every: int | None = 500  # None: only at the end and on SIGTERM
    keep_checkpoints: int = 2
    ema_decay: float | None = None  # of the averaged weights; None: no average
    mixed_precision: str = "no"  # no | bf16
    # Of float32 matrix products, as torch.set_float32_matmul_precision takes it: highest | high | medium. The lower
    # ones let hardware compute in TF32 or bfloat16. On a CPU medium takes oneDNN's products instead of MKL's, float32
    # where the processor has no AMX and on AMD's much faster, and attention without flash kernels.
    matmul_precision: str = "highest"
    threads: int | None = None  # of torch on the CPU; None: as it is
    deterministic: bool = True  # ask torch for deterministic kernels: exact resume needs them
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # Settings of other optimisers by name ("discriminator"); one that is not named here takes `optimizer`. A name that
    # the training does not know is refused (`check_optimizers`).
    other_optimizers: dict[str, OptimizerConfig] = field(default_factory=dict)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        _one_of("parallel", self.parallel, PARALLEL)
        _one_of("mixed_precision", self.mixed_precision, PRECISIONS)
        _one_of("matmul_precision", self.matmul_precision, MATMUL_PRECISIONS)
        for name in (
            "steps",
            "accumulation",
            "log_every",
            "evaluate_every",
            "sample_every",
            "checkpoint_every",
            "keep_checkpoints",
            "threads",
        ):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be 1 or more, not {value}")
        _require(
            self.gradient_clip is None or self.gradient_clip > 0,
            f"gradient_clip must be above 0 (or null: off), not {self.gradient_clip}",
        )
        _require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"ema_decay must lie between 0 and 1 (or be null: off), not {self.ema_decay}",
        )
        _require(
            self.schedule.warmup_steps <= self.steps,
            f"schedule.warmup_steps ({self.schedule.warmup_steps}) exceeds steps ({self.steps})",
        )
        optimizers = (self.optimizer, *self.other_optimizers.values())
        _require(
            self.parallel == "ddp" or all(optimizer.name != "muon" for optimizer in optimizers),
            "optimizer.name=muon works on whole matrices, which training.parallel=fsdp2 divides: take "
            "training.optimizer.name=adamw, or training.parallel=ddp",
        )

    def optimizer_named(self, name: str) -> OptimizerConfig:
        """The settings of the optimiser `name`."""
        return self.other_optimizers.get(name, self.optimizer)

    def check_optimizers(self, names: Collection[str]) -> None:
        """Raises UserError for settings of an optimiser that is not among `names`, those of the training."""
        for name in self.other_optimizers.keys() - set(names):
            known = f"the others are {', '.join(sorted(names))}" if names else "it has no others"
            _require(False, f"other_optimizers.{name} is of no optimiser of this training; {known}")

    def due(self, every: int | None, step: int) -> bool:
        """Whether what is done every `every` steps, and always after the last, is due after `step` steps."""
        return step == self.steps or (every is not None and step % every == 0)

    def digest(self) -> str:
        """A short hash of every setting that the trained weights and the metrics depend on."""
        settings = {key: value for key, value in dataclasses.asdict(self).items() if key not in OPERATIONAL}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


# Settings that may differ between the starts of one run: they change neither weights nor metrics (parallel: but for
# rounding). The loop itself sees to accumulation: it may change with the number of processes only, and make up for it.
OPERATIONAL = ("accumulation", "checkpoint_every", "keep_checkpoints", "logger", "parallel", "threads")


def operational_keys(prefix: str = "training") -> list[str]:
    """The dotted keys of those settings, for `RunDirectory.claim(ignore=...)`."""
    return [f"{prefix}.{name}" for name in OPERATIONAL]


def _one_of(key: str, value: Any, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{key} must be one of {', '.join(choices)}, not {value!r}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(f"training.{message}")
