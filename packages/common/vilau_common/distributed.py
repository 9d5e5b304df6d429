"""The few collectives that the project needs, all of them no-ops in a single process.

Small control messages (flags, Python objects) go through a CPU group, so that they never wait for a GPU.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")

# One rank may write a large checkpoint or evaluate alone while the others wait.
CONTROL_TIMEOUT = timedelta(hours=2)
STORE_TIMEOUT = timedelta(seconds=5)


def rank() -> int:
    """This process's number; right also before the process group exists (torchrun's environment)."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes; right also before the process group exists."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the one process that writes the run directory's shared files."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has come here."""
    if _together():
        dist.barrier(group=_control_group())


def maximum(value: int) -> int:
    """The largest `value` of all processes."""
    if not _together():
        return value
    tensor = torch.tensor(value, dtype=torch.int64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=_control_group())
    return int(tensor)


def gather(value: Value) -> list[Value]:
    """Every process's `value` in rank order, on every process. Plain Python values only: they are pickled."""
    if not _together():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value, group=_control_group())
    return gathered


def from_main(value: Value) -> Value:
    """Rank 0's `value`, on every process."""
    if not _together():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, group=_control_group())
    received: Value = box[0]
    return received


def sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Add `tensor` up over all processes, in place, on its own device."""
    if _together():
        dist.all_reduce(tensor)
    return tensor


def check_same(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise RuntimeError unless all processes hold the same values (told by their sums)."""
    if not _together():
        return
    sums = {name: float(tensor.sum(dtype=torch.float64)) for name, tensor in tensors.items()}
    for other_rank, other in enumerate(gather(sums)):
        different = [name for name, value in sums.items() if value != other[name]]
        if different:
            raise RuntimeError(
                f"process {other_rank} has other values of {', '.join(different)} than process "
                f"{rank()}: a buffer that follows the data must be summed over processes"
            )


def first_to_fail() -> bool:
    """Whether this process, which is about to end with an error, is the first to do so and should tell of it.

    The others' errors are that one's echo: the same mistake in the settings, or a connection to a process that is gone.
    They are told apart at the rendezvous (torchrun's, which outlives its processes); without one, each tells.
    """
    if world_size() == 1:
        return True
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # torch's client would report a store that is gone at length.
        socket.create_connection(place, STORE_TIMEOUT.total_seconds()).close()
        store = dist.TCPStore(  # type: ignore[attr-defined]
            *place, is_master=False, wait_for_workers=False, timeout=STORE_TIMEOUT
        )
        return store.add(f"vilau/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (KeyError, OSError, RuntimeError):  # torch's DistError is a RuntimeError
        return True


def leave() -> None:
    """Leave the other processes, at the end of a command."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _together() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


@cache
def _control_group() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    assert isinstance(group, dist.ProcessGroup), "every process is in the group"
    return group
