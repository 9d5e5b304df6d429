"""Weights of other people's networks that metrics need: a local file, or a download that is kept."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from vilau_common.errors import UserError
from vilau_vision_tower.evaluation.metric import NotComputed

OFFLINE = "HF_HUB_OFFLINE"


def weights_file(path: str | None, url: str, setting: str) -> Path:
    """The file `path`; for None what torch.hub keeps of `url`, downloaded once.

    setting: what would name a local file. UserError: a named file is not there. NotComputed: the download fails.
    """
    if path is not None:
        if not Path(path).is_file():
            raise UserError(f"{setting}={path}: there is no such file")
        return Path(path)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if file.is_file():
        return file
    remedy = f"bring it to {file}, or name a local copy with {setting}=FILE"
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise NotComputed(f"{url} is needed, but {OFFLINE} is set: {remedy}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file), progress=False)
    except OSError as error:  # URLError is one
        raise NotComputed(f"{url} cannot be downloaded ({error}): {remedy}") from None
    return file


def read_weights(file: Path, setting: str) -> dict[str, Any]:
    """The state dict in a .pth file, without running any code that it may hold. UserError: it is none."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{setting}: {file} cannot be read as weights: {reason}") from None
    if not isinstance(state, dict):
        raise UserError(f"{setting}: {file} holds a {type(state).__name__}, not the weights of a network")
    return state
