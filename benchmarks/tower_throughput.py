"""Images a second, share of the device's peak and memory of a tower's training, by batch size and checkpointing.

    make bench BENCH=tower_throughput        a toy on a CPU, to see that it runs
    make bench BENCH=tower_throughput \
        ARGS="--encoder siglip-large-16-256 --batch-sizes 16,32,64 experiment=vila_u_256/tower"

Weights and batches are random (`tower_step.build_synthetic`). A batch that does not fit is reported so. The operations
are those of a step's forward and backward passes as torch counts them, without what checkpointing computes again;
the peak is the device's for dense bfloat16 products, as its maker states it. Closes with one line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tower_step import ENCODERS, build_synthetic, composed, encoder_size, seconds
from transformers import SiglipTextConfig, SiglipVisionConfig

from vilau_common.training.environment import torch_settings
from vilau_common.training.state import TrainingState
from vilau_vision_tower.train import TrainTowerConfig

# Dense bfloat16 operations a second, by what the device's name contains.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
WARM_UP = 3  # steps that are not counted
GIB = 2**30
TOY = (
    SiglipVisionConfig(
        image_size=36, patch_size=12, **{**encoder_size(64, 128, 3), "num_attention_heads": 4}
    ),
    SiglipTextConfig(
        vocab_size=500, projection_size=64, **{**encoder_size(32, 64, 2), "num_attention_heads": 4}
    ),
)


def main() -> None:
    """Measure every combination, the cheapest first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="steps of each")
    parser.add_argument("--encoder", choices=ENCODERS, help="sizes of image and text encoder")
    parser.add_argument("--batch-sizes", default="8,16")
    parser.add_argument("overrides", nargs="*", help="settings of train-tower, key=value")
    arguments = parser.parse_intermixed_args()
    sizes = ENCODERS[arguments.encoder] if arguments.encoder else TOY
    base = composed(arguments.overrides)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, torch {torch.__version__}, {base.training.mixed_precision}")
    lines = []
    for size in map(int, arguments.batch_sizes.split(",")):
        for checkpointing in (False, True):
            config = dataclasses.replace(
                base,
                data=dataclasses.replace(
                    base.data, loader=dataclasses.replace(base.data.loader, batch_size=size)
                ),
                tower=dataclasses.replace(base.tower, gradient_checkpointing=checkpointing),
            )
            lines.append(
                {"batch": size, "checkpointing": checkpointing, **measured(config, sizes, arguments.rounds)}
            )
            print(told(lines[-1]), flush=True)
    print(json.dumps({"device": device, "encoder": arguments.encoder, "measured": lines}))


def measured(
    config: TrainTowerConfig, sizes: tuple[SiglipVisionConfig, SiglipTextConfig], rounds: int
) -> dict[str, Any]:
    """images_per_second, flops (of one step), share_of_peak, peak_gib; nothing of a batch that does not fit."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        with tempfile.TemporaryDirectory() as directory, torch_settings(config.training):
            loader, task = build_synthetic(config, *sizes, Path(directory))
            state = TrainingState(task, loader, dataclasses.replace(config.training, steps=10**9), seed=0)
            task.train_mode()
            state.step = config.loss.adversarial.start_step
            try:
                times = [seconds(state.advance) for _ in range(WARM_UP + rounds)][WARM_UP:]
                # After the memory is read: the counter keeps what it sees.
                memory = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None
                task.tower.activation_checkpointing_disable()
                with FlopCounterMode(display=False) as counter:
                    state.advance()
            finally:
                state.close()
    except torch.OutOfMemoryError:
        return {}
    step = statistics.median(times)
    peak = next((value for name, value in PEAKS.items() if name in device_name()), None)
    flops = counter.get_total_flops()
    return {
        "images_per_second": config.data.loader.batch_size / step,
        "flops": flops,
        "share_of_peak": None if peak is None else flops / step / peak,
        "peak_gib": memory,
    }


def device_name() -> str:
    """Of the GPU; nothing of a CPU, whose peak nobody states."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def told(line: dict[str, Any]) -> str:
    """A line for a person."""
    start = f"batch {line['batch']:4}, checkpointing {'on ' if line['checkpointing'] else 'off'}"
    if "flops" not in line:
        return f"{start}: does not fit"
    parts = [f"{line['images_per_second']:8.1f} images/s", f"{line['flops'] / 1e12:.3g} TFLOP a step"]
    if line["share_of_peak"] is not None:
        parts.append(f"{line['share_of_peak']:.1%} of the peak")
    if line["peak_gib"] is not None:
        parts.append(f"{line['peak_gib']:.1f} GiB")
    return f"{start}: {', '.join(parts)}"


if __name__ == "__main__":
    main()
