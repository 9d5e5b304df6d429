"""The numbers of an evaluation as tables on the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vilau_common.report.numbers import shown

# What a number's name begins with, without tower/ -> what it means, in few words.
MEANINGS = {
    "psnr": "pixels; higher is better",
    "ssim": "structure; 1 is equal",
    "lpips": "a network's features; lower is better",
    "rfid": "sets (Fréchet); lower is better",
    "kid_subset": "",
    "kid": "sets (kernel); lower is better",
    "zero_shot": "class among the nearest prompts'",
    "retrieval_image_to_text": "a caption of its own among k",
    "retrieval_text_to_image": "a picture of its own among k",
    "read_back": "the verifier reads the same objects",
    "hard_negative": "caption told from near misses",
    "bits_per_position": "D log2 K",
}
BY_DEPTH = re.compile(r"(?P<name>.+)_d(?P<depth>\d+)")


def print_table(
    numbers: Mapping[str, float], lacking: Mapping[str, str], directory: Path, console: Console | None = None
) -> None:
    """Numbers with their meaning; those of the codebooks by depth; what was not computed; and where all is."""
    plain = Table(box=None, pad_edge=False, show_header=False)
    by_depth: dict[int, dict[str, str]] = {}
    for key, value in numbers.items():
        name = key.rpartition("/")[2]
        text = f"{value:,}" if isinstance(value, int) else shown(key, value)
        if match := BY_DEPTH.fullmatch(name):
            by_depth.setdefault(int(match["depth"]), {})[match["name"]] = text
        else:
            plain.add_row(name, text, Text(_meaning(name), "dim"))
    for name in lacking:
        plain.add_row(name, "not computed", "")
    plain.columns[1].justify = "right"
    console = console or Console()
    console.print(plain)
    console.print(_depths(by_depth))
    for reason in dict.fromkeys(lacking.values()):
        console.print(f"not computed: {reason}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {directory}", markup=False, highlight=False, soft_wrap=True)


def _depths(by_depth: Mapping[int, Mapping[str, str]]) -> Table:
    """A row for each depth, coarse to fine."""
    names = list(dict.fromkeys(name for values in by_depth.values() for name in values))
    table = Table("depth", box=None, pad_edge=False)
    for name in names:
        table.add_column(name.removeprefix("codebook_").replace("_", " "), justify="right")
    for depth, values in sorted(by_depth.items()):
        table.add_row(str(depth), *(values.get(name, "") for name in names))
    return table


def _meaning(name: str) -> str:
    return next((meaning for start, meaning in MEANINGS.items() if name.startswith(start)), "")
