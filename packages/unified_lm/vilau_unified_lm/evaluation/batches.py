"""What the evaluations of documents share: batches with a progress bar, answers after any prompt, means by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vilau_common.data.worlds.scene import WorldDocument
from vilau_common.training.progress import TrainingProgress
from vilau_unified_lm.document import Document
from vilau_unified_lm.generation.engine import GREEDY
from vilau_unified_lm.session import Session

Item = TypeVar("Item")

BATCH = 128
# Longer than any answer of the built-in worlds.
MAX_TOKENS = 64


def batches(items: Sequence[Item], stage: str, unit: str) -> Iterator[tuple[int, Sequence[Item]]]:
    """(index of its first item, batch), one after the other."""
    with TrainingProgress(f"evaluate {stage}", len(items), unit, visible=True) as progress:
        for start in range(0, len(items), BATCH):
            chosen = items[start : start + BATCH]
            yield start, chosen
            progress.advance(start + len(chosen), len(chosen), None)


def encode_documents(
    session: Session, documents: Sequence[WorldDocument]
) -> list[list[npt.NDArray[np.int64]]]:
    """The codes of every document's pictures, int64 [h, w, D] each."""
    counts = [len(document.images) for document in documents]
    pictures = np.concatenate([document.images for document in documents])
    parts = [session.encode(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH)]
    return [list(codes) for codes in np.split(np.concatenate(parts), np.cumsum(counts)[:-1])]


def answers(session: Session, prompts: Sequence[Document], stage: str) -> list[str]:
    """The likeliest text after each prompt."""
    end = session.builder.chat.end
    texts: list[str] = []
    for _, chosen in batches(prompts, stage, "answers"):
        rows = session.engine.write(chosen, end, MAX_TOKENS, GREEDY, [0] * len(chosen))
        texts += [session.text(row) for row in rows]
    return texts


def means(named: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """(name, whether right) -> the share of right ones of each name."""
    values: dict[str, list[bool]] = defaultdict(list)
    for name, right in named:
        values[name].append(right)
    return {name: float(np.mean(flags)) for name, flags in sorted(values.items())}
