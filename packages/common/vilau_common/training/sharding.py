"""FSDP 2, torch's `fully_shard`: every process keeps a part of each weight, its gradient and the optimiser's state.

A weight is a DTensor, divided along its first dimension. The layers that a task names are gathered one at a time, when
they run, forward and backward; all other weights once a step. Of n processes each holds 1/n of 16 bytes a weight
(float32 weight, gradient, two moments). What is divided is only how weights are kept: losses and gradients are those of
DDP, and what is written to disk is whole, so that any number of processes goes on from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vilau_common import distributed
from vilau_common.training.task import Sharding

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
# FSDP and DTensor are imported where they are needed: they take a second, which commands that do not train would wait.


def shard(network: nn.Module, sharding: Sharding, device: torch.device, precision: str) -> None:
    """Divide the network among all processes, in place, each on its `device`, starting from rank 0's values.

    Never more than a layer and what no layer holds lies whole on the device. precision: "bf16" gathers weights in
    bfloat16 and averages gradients in float32; weights and moments stay float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in sharding.layers:
        _take_from_main(layer, device)
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    _take_from_main(network, device)
    ignored = {weight for module in sharding.whole for weight in module.parameters()}
    fully_shard(network, mesh=mesh, mp_policy=policy, ignored_params=ignored)


def reshard(network: nn.Module) -> None:
    """Drop the whole weights that a forward pass without a backward pass left behind: the parts may change now."""
    from torch.distributed.fsdp import FSDPModule

    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_divided(tensor: Tensor | None) -> TypeGuard[DTensor]:
    """Whether this process holds a part of the tensor only."""
    return hasattr(tensor, "full_tensor")  # a DTensor


def gathered_now(network: nn.Module) -> list[Tensor]:
    """The trainable weights that are whole on the device at this moment: those of no layer, after a forward pass."""
    return [weight for weight in network.parameters() if weight.requires_grad and not is_divided(weight)]


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; of one that is not divided, the tensor."""
    return tensor.to_local() if is_divided(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, on every process, all of which call this together."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def gathered(value: Any) -> Any:
    """The same structure of dicts and lists with whole tensors for divided ones; called on every process.

    Rank 0 gets them on the CPU, one after the other, the others get None.
    """
    if isinstance(value, Tensor):
        together = whole(value)
        return together.cpu() if distributed.is_main() else None
    if isinstance(value, Mapping):
        return {key: gathered(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [gathered(entry) for entry in value]
    return value


def divided_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, divided as `like` is; the tensor itself where `like` is not divided. No communication."""
    if not is_divided(like):
        return tensor
    from torch.distributed.tensor import DTensor, Shard

    mesh = like.device_mesh
    assert like.placements == (Shard(0),), "what fully_shard makes"
    chunks = tensor.chunk(mesh.size())
    rank = mesh.get_local_rank()
    part = chunks[rank] if rank < len(chunks) else tensor[:0]
    part = part.to(like.device, copy=True)  # a copy, so that the file which `tensor` is mapped from can go
    return DTensor.from_local(
        part, mesh, like.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


@contextmanager
def whole_weights(network: nn.Module) -> Iterator[None]:
    """Inside the block rank 0's network holds all its weights, plain ones on the CPU, to be saved but not run."""
    reshard(network)
    places = [
        (module, name, weight)
        for module in network.modules()
        for name, weight in module._parameters.items()
        if weight is not None and is_divided(weight)
    ]
    plain: dict[int, nn.Parameter] = {}  # by identity: tied weights stay tied
    for _, _, weight in places:
        values = gathered(weight.detach()) if id(weight) not in plain else None
        if values is not None:
            plain[id(weight)] = nn.Parameter(values, requires_grad=False)
    if distributed.is_main():
        _replace((module, name, plain[id(weight)]) for module, name, weight in places)
    try:
        yield
    finally:
        _replace(places)


def _replace(places: Iterable[tuple[nn.Module, str, Any]]) -> None:
    for module, name, weight in places:
        module._parameters[name] = weight


def _take_from_main(module: nn.Module, device: torch.device) -> None:
    """Rank 0's weights and buffers, as DDP begins with; processes may have drawn other first weights each."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if not is_divided(tensor):
            tensor.data = tensor.data.to(device)
            dist.broadcast(tensor.data, src=0)
