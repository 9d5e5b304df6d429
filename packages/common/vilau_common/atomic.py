"""Files and directories that appear whole or not at all.

Everything is written under a temporary sibling name (`<name>.tmp`), synced to disk, and renamed: a process
killed at any moment leaves either the old thing or the new one, and perhaps a `.tmp` leftover that the next
writer removes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by one that holds `text` (UTF-8)."""
    temporary = _temporary(path)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory to fill; it takes the place of `path` when the block ends without an error."""
    temporary = begin_directory(path)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    commit_directory(path)


def begin_directory(path: Path) -> Path:
    """Make the empty directory that `commit_directory(path)` will rename to `path`, and return it."""
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def commit_directory(path: Path) -> None:
    """Sync the directory of `begin_directory(path)` and rename it to `path`; an older `path` is removed."""
    temporary = _temporary(path)
    for entry in temporary.rglob("*"):
        _sync(entry)
    _sync(temporary)
    if path.exists():
        # A directory cannot be renamed over a full one: for a moment there is none.
        replaced = _temporary(path.with_name(f"{path.name}.replaced"))
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
        temporary.rename(path)
        shutil.rmtree(replaced)
    else:
        temporary.rename(path)
    _sync(path.parent)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed writers left in `directory`."""
    for leftover in directory.glob(f"*{TEMPORARY_SUFFIX}"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
