"""Numbers as people read them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vilau_common.report.bars import Bar

MOST_DIGITS = 6


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
    (re.compile(r"_per_second$"), Unit(1, 0, "")),
)


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
