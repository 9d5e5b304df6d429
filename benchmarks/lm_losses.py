"""Peak memory of the LM's losses, forward and backward, in chunks and plainly; and that their gradients are equal.

    make bench BENCH=lm_losses [ARGS="--device cuda --width 4096"]

A batch of 8,192 places, half of which predict a text token of V = 32,000 and half a visual position's D = 4 codes of
K = 16,384, in the heads of the model: a linear one, and a layer norm with a linear one for all depths. Counted is what
they take above their inputs, weights and gradients included. Bar: a quarter of the plain ones' memory, gradients
equal to 1e-5. The floor beside it is the gradients of inputs and weights, which any way has to hold.
Closes with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vilau_unified_lm.losses import (
    MIB,
    LossConfig,
    StepTargets,
    TokenLosses,
    chunked_cross_entropy,
    unified_loss,
)

WAYS = ("chunked", "plain")
BAR, EQUAL = 0.25, 1e-5
ALL_AT_ONCE = 2**62  # bytes


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--places", type=int, default=8192)
    parser.add_argument(
        "--width", type=int, default=256, help="of hidden states and of the depth transformer"
    )
    parser.add_argument("--text", type=int, default=32_000, help="V")
    parser.add_argument("--codes", type=int, default=16_384, help="K")
    parser.add_argument("--depth", type=int, default=4, help="D")
    parser.add_argument("--mib", type=int, default=LossConfig().logits_mib, help="memory of a chunk's logits")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


class Losses:
    """The heads, their inputs and targets."""

    def __init__(self, arguments: argparse.Namespace, scale: int = 1) -> None:
        """scale: makes everything that much smaller."""
        torch.manual_seed(0)
        width, depth, device = arguments.width, arguments.depth, arguments.device
        self.text, self.codes = arguments.text // scale, arguments.codes // scale
        self.count, self.depth = arguments.places // 2 // scale, depth
        self.heads = nn.ModuleList(
            [
                nn.Linear(width, self.text, bias=False),
                nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.codes)),
            ]
        ).to(device)
        sizes = (self.count, self.count * depth)
        self.states = [torch.randn(size, width, device=device, requires_grad=True) for size in sizes]
        self.targets = [
            torch.randint(classes, (size,), device=device)
            for size, classes in zip(sizes, (self.text, self.codes), strict=True)
        ]

    def step(self, memory: int) -> list[Tensor]:
        """One forward and backward pass; the gradients of inputs and weights. memory: bytes of a chunk's logits."""
        weights = [*self.states, *self.heads.parameters()]
        for weight in weights:
            weight.grad = None
        text, visual = (
            chunked_cross_entropy(head, states, targets, classes, memory)
            for head, states, targets, classes in zip(
                self.heads, self.states, self.targets, (self.text, self.codes), strict=True
            )
        )
        losses = TokenLosses(text, visual.view(-1, self.depth), self.count)
        count = torch.tensor(float(self.count), device=text.device)
        unified_loss(losses, StepTargets(count, count, parts=1), "modality").total.backward()
        return [weight.grad for weight in weights if weight.grad is not None]


def peak_mib(device: str) -> float:
    """Most memory held since `reset_peak`, in MiB; on a CPU Linux's own count of the process's resident memory."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / MIB
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def reset_peak(device: str) -> None:
    """Forget peaks of before."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def memory(arguments: argparse.Namespace) -> tuple[float, float]:
    """MiB at the peak of a step above what there was before it, and its seconds."""
    budget = ALL_AT_ONCE if arguments.memory_of == "plain" else arguments.mib * MIB
    Losses(arguments, scale=16).step(budget // 16)  # libraries are loaded on first use
    losses = Losses(arguments)
    reset_peak(arguments.device)
    before = peak_mib(arguments.device)
    start = time.perf_counter()
    gradients = losses.step(budget)
    float(gradients[0].sum())  # waits for a GPU
    return peak_mib(arguments.device) - before, time.perf_counter() - start


def in_a_fresh_process(way: str) -> Sequence[float]:
    """`memory` of one way; this process's own would hide it."""
    command = [sys.executable, __file__, *sys.argv[1:], f"--memory-of={way}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    """Measure and print."""
    arguments = parse()
    if arguments.memory_of:
        print(json.dumps(memory(arguments)))
        return
    (chunked, slower), (plain, seconds) = (in_a_fresh_process(way) for way in WAYS)
    losses = Losses(arguments)
    plain_gradients = losses.step(ALL_AT_ONCE)
    floor = sum(gradient.numel() * gradient.element_size() for gradient in plain_gradients) / MIB
    # Relative to each gradient's largest entry.
    difference = max(
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(losses.step(arguments.mib * MIB), plain_gradients, strict=True)
    )
    print(f"chunked {chunked:6.0f} MiB, {slower:5.1f} s (chunks of {arguments.mib} MiB)")
    print(f"plain   {plain:6.0f} MiB, {seconds:5.1f} s; floor {floor:.0f} MiB")
    print(
        f"chunked / plain {chunked / plain:.3f} (bar {BAR}); largest difference of gradients {difference:.1e} "
        f"(bar {EQUAL:.0e})"
    )
    sizes = {name: value for name, value in vars(arguments).items() if name != "memory_of"}
    results = {
        "mib/chunked": chunked,
        "mib/plain": plain,
        "mib/floor": floor,
        "chunked_over_plain": chunked / plain,
    }
    times = {"seconds/chunked": slower, "seconds/plain": seconds}
    print(json.dumps({**sizes, **results, **times, "difference_of_gradients": difference}))


if __name__ == "__main__":
    main()
