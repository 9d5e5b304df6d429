"""Weights of other people's networks that losses and metrics need: a local file, or a download that is kept."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from vilau_common.errors import UserError

OFFLINE = "HF_HUB_OFFLINE"


class WeightsMissing(UserError):
    """Weights are not here and cannot be downloaded; the sentence says which file to bring where."""


def weights_file(path: str | None, url: str, setting: str, sha256: str | None = None) -> Path:
    """The file `path`; for None what torch.hub keeps of `url`, downloaded once.

    Of several processes one downloads, and the others wait for it. setting: what would name a local file. sha256: how
    the download's hash begins. Raises UserError where a named file is not there, WeightsMissing where the download
    fails.
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
        raise WeightsMissing(f"{url} is needed, but {OFFLINE} is set: {remedy}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file):
            if not file.is_file():
                torch.hub.download_url_to_file(url, str(file), hash_prefix=sha256, progress=False)
    except OSError as error:  # URLError is one
        raise WeightsMissing(f"{url} cannot be downloaded ({error}): {remedy}") from None
    except RuntimeError as error:  # torch.hub's, of the hash
        raise WeightsMissing(f"what {url} gave is not that file ({error}): {remedy}") from None
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


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process at a time is inside, of all that want `file`: before a training they share nothing but the disk."""
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield
