"""Numbers as people read them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from vilau_common.report.bars import Bar

MOST_DIGITS = 6

MINUS = "−"


@dataclass(frozen=True)
class Unit:
    """value * factor, with so many decimals, then the suffix."""

    factor: float
    digits: int
    suffix: str


PLAIN = Unit(1, 3, "")
PERCENT = Unit(100, 1, " %")
ALL = Bar(1.0)
# By what a key holds; the first that fits counts.
UNITS = (
    (re.compile(r"accuracy|usage|zero_shot_top|retrieval_\w+_r\d"), PERCENT),
    (re.compile(r"psnr"), Unit(1, 1, " dB")),
    (re.compile(r"_seconds$"), Unit(1, 0, " s")),
    (re.compile(r"_per_second$|dead_codes"), Unit(1, 0, "")),
)

# By what a key holds; of others, and of what is in neither, no one can say which is better.
HIGHER_IS_BETTER = re.compile(
    r"accuracy|usage|zero_shot_top|retrieval_\w+_r\d|psnr|ssim|_per_second$|precision|recall|f1|clip_score"
)
LOWER_IS_BETTER = re.compile(r"_seconds$|lpips|r?fid|kid(?!_std)|dead_codes|(?<!codebook_)perplexity")


def unit_of(key: str) -> Unit:
    """The unit in which the number of this key is shown."""
    return next((unit for pattern, unit in UNITS if pattern.search(key)), PLAIN)


def shown(key: str, value: float, bar: Bar | None = None) -> str:
    """A number of results.json with its unit; never rounded to the other side of its bar, nor up to all."""
    unit = unit_of(key)
    bars = [*([bar] if bar is not None else []), *([ALL] if unit is PERCENT else [])]
    for digits in range(unit.digits, MOST_DIGITS):
        text = f"{value * unit.factor:,.{digits}f}"
        rounded = float(text.replace(",", "")) / unit.factor
        if all(bar.met(rounded) == bar.met(value) for bar in bars):
            break
    return text + unit.suffix


def difference(key: str, value: float, reference: float) -> str:
    """How far a number is from another one of its key, "+1.3 points"; "same" only where they are equal."""
    unit, change = unit_of(key), value - reference
    if change == 0:
        return "same"
    for digits in range(unit.digits, MOST_DIGITS):
        text = f"{abs(change) * unit.factor:,.{digits}f}"
        if float(text.replace(",", "")) > 0:
            break
    sign = MINUS if change < 0 else "+"
    return f"{sign}{text}{' points' if unit is PERCENT else unit.suffix}"


def is_better(key: str, value: float, reference: float) -> bool | None:
    """Whether a number is better than another one of its key; None where they are equal, or no one can say."""
    if value == reference or math.isnan(value) or math.isnan(reference):
        return None
    if HIGHER_IS_BETTER.search(key):
        return value > reference
    return value < reference if LOWER_IS_BETTER.search(key) else None


def bar_text(key: str, bar: Bar) -> str:
    """ "≥ 95 %"."""
    unit = unit_of(key)
    return f"{'≤' if bar.at_most else '≥'} {bar.threshold * unit.factor:g}{unit.suffix}"


def exact(value: float) -> str:
    """A number as it stands in results.json, to six digits."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def duration(seconds: float) -> str:
    """ "7.3 s", "42 s", "8 min 12 s", "2 h 5 min"."""
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
