"""Text-only ability: the perplexity of a text file, which a model of pictures and text loses where its training had too
little text (VILA, section 3).

The file is cut into windows that do not overlap, each after the token that begins a text; the first ids of a window
are predicted from little. Perplexity is by token, so it compares models of one tokenizer; bits by byte compare any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vilau_common.errors import UserError
from vilau_common.training.progress import TrainingProgress
from vilau_unified_lm.evaluation.public.asked import Asked
from vilau_unified_lm.evaluation.public.predictions import Predictions


@dataclass(kw_only=True)
class TextConfig:
    """file: plain text, UTF-8. window: ids in a window with the one that begins it; null: the model's context."""

    file: str | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 2:
            raise UserError(f"text.window is {self.window}; it holds 2 ids at least")


@dataclass(frozen=True)
class Text:
    windows: list[tuple[int, ...]]  # ids, without the one that begins a text
    size: int  # bytes of UTF-8


def read_text(config: TextConfig) -> str:
    """The file's text. Raises UserError where there is none."""
    assert config.file is not None
    path = Path(config.file)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"text.file={path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"text.file={path} is not UTF-8: {error}") from None
    if not text.strip():
        raise UserError(f"text.file={path} is empty")
    return text


def windows(asked: Asked, text: str, config: TextConfig) -> Text:
    """The text as the model reads it. Raises UserError for a window longer than its context."""
    window = config.window or asked.context
    if window > asked.context:
        raise UserError(f"text.window is {window}, but the model's context holds {asked.context}")
    ids = asked.builder.ids(text)
    room = window - 1
    return Text([ids[start : start + room] for start in range(0, len(ids), room)], len(text.encode()))


def measure(asked: Asked, text: Text, chosen: int, predictions: Predictions, batch_size: int) -> None:
    """The summed loss of the first `chosen` windows, those in `predictions` not again."""
    waiting = [number for number in range(chosen) if str(number) not in predictions.done]
    done = chosen - len(waiting)
    with TrainingProgress("evaluate text", chosen, "windows", visible=True) as progress:
        if done:
            progress.say(f"{done} of {chosen} windows were measured before")
        for start in range(0, len(waiting), batch_size):
            batch = waiting[start : start + batch_size]
            losses = asked.text_losses([text.windows[number] for number in batch])
            predictions.add(
                {"id": str(number), "tokens": len(own), "loss": float(own.double().sum())}
                for number, own in zip(batch, losses, strict=True)
            )
            done += len(batch)
            progress.advance(done, len(batch), None)


def text_numbers(text: Text, chosen: int, predictions: Predictions) -> dict[str, float]:
    """perplexity and tokens; bits_per_byte and bytes of a text that was read to its end."""
    records: Sequence[dict[str, float]] = [predictions.done[str(number)] for number in range(chosen)]
    loss, tokens = sum(record["loss"] for record in records), sum(record["tokens"] for record in records)
    numbers: dict[str, float] = {"perplexity": math.exp(loss / tokens), "tokens": tokens}
    if chosen == len(text.windows):
        numbers |= {"bits_per_byte": loss / math.log(2) / text.size, "bytes": text.size}
    return numbers
