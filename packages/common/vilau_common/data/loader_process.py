"""How a loader's worker processes live and die."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
from megatron.energon.savable_loader import SavableDataLoader

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class WorkerStart:
    """What a worker does first: energon's own start, then the rules for signals. Picklable."""

    def __init__(self, start: Callable[[int], None]) -> None:
        self._start = start
        self._parent = os.getpid()

    def __call__(self, worker: int) -> None:
        """Called by torch's loader in the new process."""
        # Ctrl-C, a scheduler's SIGTERM and its warning reach the whole process group, but the training needs
        # its workers for the last checkpoint: they go when the main process ends them.
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(name, signal.SIG_IGN)
        # A killed main process ends nothing. Torch's workers look for their parent every few seconds; on
        # Linux the kernel does it at once.
        if sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self._parent:  # it died in the meantime
                os._exit(1)
        # What the worker inherits lives as long as it does. Looking through it all, as the start does for the
        # sake of CUDA tensors and the garbage collector ever after, takes a second beside a large program.
        if not torch.cuda.is_initialized():
            gc.freeze()
        self._start(worker)


def end_workers(loader: SavableDataLoader[Any], parent: int) -> None:
    """Let the workers of `loader` finish, if this is the process `parent` that started them."""
    iterator = loader._iterator
    if os.getpid() == parent and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
