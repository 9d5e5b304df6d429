"""What a part (tower, CLIP, LM) gives to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from vilau_common.errors import UserError
from vilau_common.training.config import TrainingConfig

MAIN = "main"


@dataclass(frozen=True)
class StepOutput:
    """What one batch gave."""

    losses: dict[str, Tensor]  # optimiser name -> scalar loss, a mean over the batch
    metrics: dict[str, Tensor | float] = field(default_factory=dict)  # name -> scalar, for the log only


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that one optimiser treats alike."""

    name: str
    parameters: list[nn.Parameter]
    optimizer: str = MAIN  # the loss of this name, and only it, gives these parameters their gradient
    learning_rate_scale: float = 1.0
    weight_decay: float | None = None  # None: the optimiser's
    matrices: bool = False  # may be given to Muon: 2-D weights of hidden layers, no embeddings, no heads


@dataclass(frozen=True)
class Sharding:
    """How FSDP divides a network among processes (`training.parallel=fsdp2`).

    Processes gather a layer's weights together: every process calls the same layers equally often, whatever its batch.
    """

    layers: list[
        nn.Module
    ]  # gathered one at a time, each when it is called; what no layer holds, once a step
    whole: list[nn.Module] = field(default_factory=list)  # frozen parts that every process keeps whole


class Loader(Protocol):
    """An endless source of batches whose position can be saved and restored exactly.

    Its batches do not depend on the global random generators: it keeps its own and saves them. It may have `sources`,
    JSON values that are equal where its data are the same: then a run goes on with no others.
    """

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> Mapping[str, Any]:
        """The position after the batches handed out so far; plain values and tensors only."""

    def load_state_dict(self, state: Any) -> None:
        """Go to a saved position; called before iteration begins."""


class Task(ABC):
    """One training objective.

    In more than one process each process runs the same task on its own batches. `network` is then wrapped so
    that gradients are averaged; buffers are not synchronised: a task whose buffers follow the data
    (EMA codebooks) sums its statistics over processes (`vilau_common.distributed.sum_`).
    """

    # Everything that is trained or keeps state: the loop moves it, wraps it and writes it to checkpoints.
    network: nn.Module
    unit: str = "samples"  # what `batch_size` counts
    # Optimisers that the task may have beside MAIN, whether or not its present settings use them.
    other_optimizers: tuple[str, ...] = ()
    # Whether a batch may leave parameters of a loss that it has without a gradient (no picture in it, say). Only
    # several processes must know it, and it costs them a pass over the weights at each step.
    may_skip_parameters: bool = False

    def check(self, config: TrainingConfig) -> None:
        """Raises UserError for settings that this training has no use for; call it before the run is claimed."""
        config.check_optimizers(self.other_optimizers)
        for setting, method in (("evaluate_every", Task.evaluate), ("sample_every", Task.save_samples)):
            every = getattr(config, setting)
            if every is not None and getattr(type(self), method.__name__) is method:
                raise UserError(
                    f"training.{setting} is {every}, but this training does neither evaluation nor samples on its way: "
                    f"set training.{setting}=null; `vilau evaluate` takes the finished run"
                )

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """Every parameter that requires a gradient, each one in exactly one group."""

    @abstractmethod
    def training_step(self, network: nn.Module, batch: Any, step: int) -> StepOutput:
        """The losses of one batch.

        network: `self.network`, wrapped for several processes and mixed precision: run the forward pass
            through `network(...)`, not through its parts.
        step: the number of optimiser steps done so far.
        """

    @abstractmethod
    def save_model(self, directory: Path) -> None:
        """Write the trained model, as `save_pretrained` does, into an existing empty directory."""

    def batch_size(self, batch: Any) -> int:
        """The number of `unit`s in a batch, for the throughput; 0 where that is not known."""
        return 0

    def sharding(self) -> Sharding:
        """How the network is divided where `training.parallel` asks for it. UserError: it is kept whole."""
        raise UserError("training.parallel=fsdp2 is not for this training: use training.parallel=ddp")

    def train_mode(self) -> None:
        """Put the modules into training mode; override it to leave frozen parts in evaluation mode."""
        self.network.train()

    def before_step(self, batches: Sequence[Any]) -> None:  # noqa: B027
        """Called with all batches of an optimiser step before its first one, on the CPU, on every process: to count
        what the means of the joint batch divide by."""

    def after_step(self, step: int) -> None:  # noqa: B027 - nothing is a fair default
        """Called after each optimiser step; `step` is the number of steps now done."""

    def evaluate(self) -> dict[str, float]:
        """Numbers on data never trained on. In evaluation mode, without gradients, with the averaged weights
        where there are any, on random numbers of its own. Called on every process; rank 0's numbers count."""
        return {}

    def save_samples(self, directory: Path, step: int) -> None:  # noqa: B027
        """Write pictures of what the model does now. Called on rank 0, under `evaluate`'s conditions; never where
        FSDP divides the weights, which no process can run alone."""

    def trained_state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep of the network; override it to leave out frozen parts."""
        return self.network.state_dict()

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Read back what `trained_state` returned."""
        self.network.load_state_dict(state)


def check_parameter_groups(network: nn.Module, groups: list[ParameterGroup]) -> None:
    """Raise ValueError unless every trainable parameter of `network` is in exactly one group."""
    owner: dict[int, str] = {}
    for group in groups:
        for parameter in group.parameters:
            if id(parameter) in owner:
                raise ValueError(
                    f"a parameter {list(parameter.shape)} is in the groups {owner[id(parameter)]!r} "
                    f"and {group.name!r}"
                )
            owner[id(parameter)] = group.name
            if group.matrices and parameter.ndim != 2:
                raise ValueError(
                    f"group {group.name!r} is marked matrices=True but has a parameter of shape "
                    f"{list(parameter.shape)}"
                )
    trainable = {
        id(parameter): name for name, parameter in network.named_parameters() if parameter.requires_grad
    }
    if missing := [name for key, name in trainable.items() if key not in owner]:
        raise ValueError(f"parameters of no group: {', '.join(missing[:5])}")
    if foreign := [name for key, name in owner.items() if key not in trainable]:
        raise ValueError(f"group {foreign[0]!r} has a parameter that is frozen or not the network's")
