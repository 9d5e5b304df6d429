"""The tower's benchmarks, at toy size: any experiment can be measured, with random weights and batches."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import tower_step
import tower_throughput

# The settings of a published preset, but small: image size, codebooks, decoder and discriminator.
SMALL_VILA_U = [
    "experiment=vila_u_256/tower",
    "data.image_size=36",
    "data.loader.batch_size=2",
    "tower.quantizer={codebook_size: 16, depth: 2}",
    "tower.decoder={latent_channels: 8, channels: 4, channel_multipliers: [1, 2, 2], residual_blocks: 1, groups: 2}",
    "loss.perceptual={kind: lpips, network: alex}",
    "loss.adversarial={start_step: 0, discriminator: {channels: 4, layers: 2, groups: 2}}",
    "training.mixed_precision=no",
    "training.matmul_precision=highest",
]


def last_line(out: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(out.splitlines()[-1])
    return found


def test_a_step_of_any_experiment_is_compared_with_its_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(tower_step.ENCODERS, "toy", tower_throughput.TOY)
    monkeypatch.setattr(sys, "argv", ["tower_step", "--rounds", "1", "--encoder", "toy", *SMALL_VILA_U])
    monkeypatch.setattr(tower_step, "WARM_UP", 0)
    tower_step.main()
    found = last_line(capsys.readouterr().out)
    parts = [*tower_step.FIRST_PARTS, "text encoder", "perceptual"]
    assert {f"seconds/{name}" for name in parts} < found.keys()
    of_first = found["seconds/step"] / sum(found[f"seconds/{name}"] for name in tower_step.FIRST_PARTS)
    assert found["step_over_first_parts"] == pytest.approx(of_first)
    assert found["step_over_first_parts"] > found["step_over_parts"]


def test_throughput_is_measured_by_batch_size_and_checkpointing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["tower_throughput", "--rounds", "1", "--batch-sizes", "2,4", *SMALL_VILA_U]
    )
    monkeypatch.setattr(tower_throughput, "WARM_UP", 0)
    build = tower_throughput.build_synthetic

    def no_room_for_four(config, *rest):
        if config.data.loader.batch_size == 4:
            raise torch.OutOfMemoryError
        return build(config, *rest)

    monkeypatch.setattr(tower_throughput, "build_synthetic", no_room_for_four)
    tower_throughput.main()
    out = capsys.readouterr().out
    plain, checkpointed, *too_large = last_line(out)["measured"]
    assert (plain["checkpointing"], checkpointed["checkpointing"]) == (False, True)
    assert plain["flops"] == checkpointed["flops"] > 1e6
    assert plain["images_per_second"] > 0
    assert [line.keys() for line in too_large] == [{"batch", "checkpointing"}] * 2
    assert "batch    4, checkpointing on : does not fit" in out
