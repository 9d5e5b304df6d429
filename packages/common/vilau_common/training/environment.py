"""Accelerate and torch, set up for one training run and put back afterwards."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vilau_common.training.config import TrainingConfig
from vilau_common.training.sharding import shard
from vilau_common.training.task import Sharding

# cuBLAS is deterministic with a workspace of fixed size only (its documentation, "Results reproducibility").
DETERMINISTIC_CUBLAS = ":4096:8"


def accelerator_for(config: TrainingConfig) -> Accelerator:
    """Accelerate on this process's GPU, or the CPU; under torchrun it also makes the process group."""
    # Accelerate keeps one state for the whole process and refuses a second training with another precision.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=config.mixed_precision,
        # As a plugin: a plain number would give way to one in the environment that `accelerate launch` sets.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            config.accumulation, sync_with_dataloader=False
        ),
        # Codebooks are large buffers: sending them around at every step would cost more than the gradients.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def wrap(
    accelerator: Accelerator, network: nn.Module, sharding: Sharding | None, precision: str
) -> nn.Module:
    """The network on its device, averaging gradients over processes, its forward pass in mixed precision.

    sharding: how FSDP divides it, in place; None: DDP, or one process.
    """
    if sharding is not None:
        # Directly, not by Accelerate's plugin, which would divide frozen parts as well and takes the layers from a
        # transformers model's class alone. Autocast still comes from Accelerate: float32 where numbers are delicate.
        shard(network, sharding, accelerator.device, precision)
        prepared: nn.Module = accelerator.prepare_model(network, device_placement=False, evaluation_mode=True)
        return prepared
    with warnings.catch_warnings():
        # torch renames the option; Accelerate knows the old name only.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        wrapped: nn.Module = accelerator.prepare_model(network)
    return wrapped


def release(accelerator: Accelerator, network: nn.Module) -> None:
    """Undo `wrap`, so that the network can be used plainly or trained again; one that is divided stays so."""
    bare = accelerator.unwrap_model(network, keep_fp32_wrapper=False)
    bare.__dict__.pop("_is_accelerate_prepared", None)


@contextmanager
def torch_settings(config: TrainingConfig) -> Iterator[None]:
    """The threads, precision and determinism that the configuration asks for, inside the block."""
    threads = torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    determinism = torch.get_deterministic_debug_mode()
    debug: Any = torch.utils.deterministic
    fill = debug.fill_uninitialized_memory
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        # torch.use_deterministic_algorithms would do the same, and import the compiler: seconds at every start.
        torch.set_deterministic_debug_mode("warn")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", DETERMINISTIC_CUBLAS)
        debug.fill_uninitialized_memory = False  # it finds bugs, and costs time
    torch.set_float32_matmul_precision(config.matmul_precision)
    attention: AbstractContextManager[None] = nullcontext()
    if config.matmul_precision == "medium" and not torch.cuda.is_available():
        # Flash attention's many small products are slow in oneDNN: four times the backward pass's time.
        attention = sdpa_kernel(SDPBackend.MATH)
    try:
        with attention:
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.set_deterministic_debug_mode(determinism)
        debug.fill_uninitialized_memory = fill
