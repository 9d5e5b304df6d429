"""The numbers of an evaluation as a table on the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vilau_common.report.numbers import shown

# What a number's name begins with, without tower/ -> what it means. The order of the rows is that of results.json.
MEANINGS = {
    "psnr": "pixels, mean over pictures; higher is better",
    "ssim": "structure, 1 is equal",
    "lpips": "distance in a trained network's features; lower is better",
    "rfid": "distance of the sets of pictures (Fréchet); lower is better, and biased up by few pictures",
    "kid": "distance of the sets of pictures (kernel), unbiased; lower is better",
    "zero_shot": "pictures nearest to their own class's prompts",
    "retrieval_image_to_text": "pictures that find a caption of their own",
    "retrieval_text_to_image": "captions that find a picture of their own",
    "read_back": "reconstructions in which the verifier reads the original's objects",
    "hard_negative": "pictures nearer to their caption than to each near miss",
    "codebook_usage": "codes that occur",
    "codebook_perplexity": "codes as if all were equally frequent",
    "bits_per_position": "D log2 K",
}
BY_DEPTH = re.compile(r"(?P<name>.+)_d\d+")
HIDDEN = ("codebook_entropy", "dead_codes")  # they say what usage and perplexity say


def print_table(
    numbers: Mapping[str, float], lacking: Mapping[str, str], directory: Path, console: Console | None = None
) -> None:
    """Numbers with their meaning, those by depth in one row each; then what was not computed; then where all is."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right")
    table.add_column("", style="dim")
    for name, value in rows(numbers):
        table.add_row(name, value, _meaning(name))
    for name in lacking:
        table.add_row(name, "not computed", "")
    console = console or Console()
    console.print(table)
    for reason in dict.fromkeys(lacking.values()):
        console.print(f"not computed: {reason}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {directory}", markup=False, highlight=False, soft_wrap=True)


def rows(numbers: Mapping[str, float]) -> list[tuple[str, str]]:
    """Name and value of each row; numbers by depth stand in one, coarse to fine."""
    found: dict[str, list[str]] = {}
    for key, value in numbers.items():
        name = key.rpartition("/")[2]
        match = BY_DEPTH.fullmatch(name)
        name = match["name"] if match else name
        if not name.startswith(HIDDEN):
            found.setdefault(name, []).append(f"{value:,}" if isinstance(value, int) else shown(key, value))
    return [(name, "  ".join(values)) for name, values in found.items()]


def _meaning(name: str) -> str:
    return next((meaning for start, meaning in MEANINGS.items() if name.startswith(start)), "")
