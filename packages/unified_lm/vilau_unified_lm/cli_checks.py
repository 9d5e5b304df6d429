"""Checks of the command line's options, made before anything is loaded: one sentence each."""

from __future__ import annotations

import re
from pathlib import Path

from vilau_common.errors import UserError

DEVICE_MAP = re.compile(r"auto|cpu|cuda(:\d+)?")
DTYPES = ("auto", "float32", "bfloat16", "float16")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def require_run(run: Path) -> None:
    """A run's directory must exist."""
    if not run.is_dir():
        raise UserError(f"there is no run directory {run}; make demo writes runs/demo")


def require_directory(directory: Path) -> None:
    """A directory to read must exist."""
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}")


def require_dtype(dtype: str) -> None:
    """One of DTYPES."""
    if dtype not in DTYPES:
        raise UserError(f"--dtype is {dtype!r}; it is one of {', '.join(DTYPES)}")


def require_device_map(device_map: str | None) -> None:
    """None, or a device or way to share out a model that DEVICE_MAP knows."""
    if device_map is not None and not DEVICE_MAP.fullmatch(device_map):
        raise UserError(f"--device-map is {device_map!r}; it is auto, cpu, cuda, or one GPU such as cuda:1")


def require_picture(image: Path) -> None:
    """A picture to read must exist."""
    if not image.is_file():
        raise UserError(f"there is no picture {image}")


def require_writable_picture(output: Path) -> None:
    """A picture to write needs a known suffix and a directory."""
    if output.suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(f"--output {output} must end in one of {', '.join(PICTURE_SUFFIXES)}")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no directory {output.parent}")


def require_at_least(option: str, value: float | None, least: float) -> None:
    """An option that is given must not lie below `least`; NaN does."""
    if value is not None and not value >= least:
        raise UserError(f"{option} must be {least} or more, got {value}")


def require_share(option: str, value: float | None) -> None:
    """An option that is given must lie above 0 and not above 1."""
    if value is not None and not 0 < value <= 1:
        raise UserError(f"{option} must be above 0 and at most 1, got {value}")
