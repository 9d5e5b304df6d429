"""Our residual quantiser against vector_quantize_pytorch.ResidualVQ, and its peak memory at the largest sizes.

    make bench BENCH=quantizer [ARGS="--device cuda --matmul-precision high"]

Time: N = 4,096 vectors of width 256, K = 16,384 codes, depth 4, training (a step with its backward pass, EMA codebooks)
and evaluation. The library runs with what costs it least: no restart of dead codes, no rotation trick; ours restarts.
Bar: a third of its time. Beside them stands the floor: the products of vectors and codebooks alone.
Memory: one training step at K = N = 65,536, codes of width 32 in features of 256, all that it takes above its input,
codebooks included. Bar: 1 GiB. A table of all distances would take 16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ

from vilau_vision_tower.quantizer import QuantizerConfig, build_quantizer

DECAY = 0.99
WARM_UP = 2  # rounds
MIB = 2**20


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Speed and peak memory of the quantiser.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vectors", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--codes", type=int, default=16_384)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-size", type=int, default=65_536, help="K and N of the memory's measurement")
    parser.add_argument("--code-dim", type=int, default=32, help="width of its codes")
    parser.add_argument("--matmul-precision", choices=["highest", "high", "medium"], default="highest")
    parser.add_argument("--memory-of", choices=["ema", "gradient"], help=argparse.SUPPRESS)
    return parser.parse_args()


def speed(arguments: argparse.Namespace) -> dict[str, float]:
    """Medians in milliseconds, everything measured by turns, so that a noisy machine disturbs all alike."""
    device, size, depth, width = (getattr(arguments, name) for name in ("device", "codes", "depth", "width"))
    z = torch.randn(1, arguments.vectors, width, device=device, requires_grad=True)
    ours = build_quantizer(QuantizerConfig(codebook_size=size, depth=depth, ema_decay=DECAY), width)
    library = ResidualVQ(
        dim=width,
        num_quantizers=depth,
        codebook_size=size,
        decay=DECAY,
        rotation_trick=False,
        threshold_ema_dead_code=0,
    )
    codebooks = torch.randn(depth, size, width)
    ours.set_codebooks(codebooks)
    for layer, codebook in zip(library.layers, codebooks, strict=True):
        layer.codebook = codebook
    ours, library = ours.to(device), library.to(device)
    books = [codebook.to(device).T.contiguous() for codebook in codebooks]

    def floor() -> None:
        with torch.no_grad():
            for book in books:
                torch.matmul(z[0], book)

    def training(step: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            z.grad = None
            step().backward()

        return run

    def evaluation(module: nn.Module) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                module.eval()(z)
                module.train()

        return run

    def our_step() -> Tensor:
        output = ours(z)
        return output.z_q.sum() + output.commitment

    def library_step() -> Tensor:
        quantized, _, losses = library(z)
        return quantized.sum() + losses.mean()

    runs = {
        "training_ours": training(our_step),
        "training_library": training(library_step),
        "evaluation_ours": evaluation(ours),
        "evaluation_library": evaluation(library),
        "floor": floor,
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(WARM_UP + arguments.rounds):
        for name, run in runs.items():
            taken = milliseconds(run, device)
            if round_ >= WARM_UP:
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}


def milliseconds(run: Callable[[], None], device: str) -> float:
    """Of one call."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def memory(arguments: argparse.Namespace) -> float:
    """MiB at the peak of the third training step, above what there was before the quantiser was built."""
    size, device = arguments.memory_size, arguments.device

    def step(quantizer: nn.Module, z: Tensor) -> None:
        z.grad = None
        output = quantizer(z)
        (output.z_q.sum() + output.commitment + output.codebook).backward()

    def build(codes: int) -> nn.Module:
        config = QuantizerConfig(
            codebook_size=codes,
            depth=arguments.depth,
            code_dim=arguments.code_dim,
            codebook_update=arguments.memory_of,
        )
        return build_quantizer(config, arguments.width).to(device).train()

    # A small one first: libraries are loaded on first use.
    step(build(64), torch.randn(256, arguments.width, device=device, requires_grad=True))
    z = torch.randn(size, arguments.width, device=device, requires_grad=True)
    reset_peak(device)
    before = peak_mib(device)
    quantizer = build(size)
    for _ in range(3):
        step(quantizer, z)
    return peak_mib(device) - before


def reset_peak(device: str) -> None:
    """Forget peaks of before; on a CPU through Linux's own count of the process's resident memory."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: str) -> float:
    """Most memory held since then, in MiB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / MIB
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def memory_in_a_fresh_process(update: str) -> float:
    """Peak MiB of codebooks that follow by `update`; this process's own memory would hide it."""
    command = [sys.executable, __file__, *sys.argv[1:], f"--memory-of={update}"]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    """Measure and print, last one line of JSON."""
    arguments = parse()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision(arguments.matmul_precision)
    if arguments.memory_of:
        print(memory(arguments))
        return
    device = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "CPU"
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    times = speed(arguments)
    for part in ("training", "evaluation"):
        ours, library = times[f"{part}_ours"], times[f"{part}_library"]
        print(
            f"{part:10} {ours:8.1f} ms, the library {library:8.1f} ms: {library / ours:.2f} times its speed; "
            f"floor {times['floor']:.1f} ms"
        )
    peaks = {update: memory_in_a_fresh_process(update) for update in ("ema", "gradient")}
    for update, peak in peaks.items():
        print(f"{update:10} {peak:8.0f} MiB at K = N = {arguments.memory_size:,}")
    sizes = {name: value for name, value in vars(arguments).items() if name != "memory_of"}
    print(json.dumps({**sizes, "milliseconds": times, "peak_mib": peaks}))


if __name__ == "__main__":
    main()
