"""The numbers of the public data sets, from answers that `answers` has brought to their form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# So many people who gave an answer make it fully right.
AGREEMENT = 3


def soft_accuracy(answer: str, truths: Sequence[str]) -> float:
    """VQA's accuracy: the mean, over leaving out each of the (ten) people, of min(1, people who agree / 3).

    >>> round(soft_accuracy("cat", ["cat"] * 3 + ["dog"] * 7), 2)
    0.9
    """
    agree = [truth == answer for truth in truths]
    return float(np.mean([min(1.0, (sum(agree) - own) / AGREEMENT) for own in agree]))


@dataclass(frozen=True)
class YesNo:
    """Answers to questions of yes or no; yes is what is looked for."""

    accuracy: float
    precision: float  # 0 where no answer is yes
    recall: float  # 0 where no truth is yes
    f1: float
    yes_share: float  # of the answers: a model that says yes to everything has 1

    @classmethod
    def of(cls, answers: Sequence[str], truths: Sequence[str]) -> YesNo:
        """answers, truths: "yes" and "no"."""
        said, true = (np.array([word == "yes" for word in words]) for words in (answers, truths))
        right = int((said & true).sum())
        precision = right / max(int(said.sum()), 1)
        recall = right / max(int(true.sum()), 1)
        return cls(
            accuracy=float((said == true).mean()),
            precision=precision,
            recall=recall,
            f1=2 * precision * recall / (precision + recall) if right else 0.0,
            yes_share=float(said.mean()),
        )


def paired_accuracy(right: Mapping[str, Sequence[bool]]) -> tuple[float, float]:
    """MME's accuracy, over all questions, and accuracy+, over pictures with all of their questions right.

    right: by picture.
    """
    questions = [value for values in right.values() for value in values]
    return float(np.mean(questions)), float(np.mean([all(values) for values in right.values()]))


def means(scores: Iterable[tuple[str, float]], name: str) -> dict[str, float]:
    """`name`, the mean of all (kind, score), and `name/<kind>`, that of each kind."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for kind, score in scores:
        by_kind[name].append(score)
        if kind:
            by_kind[f"{name}/{kind}"].append(score)
    return {key: float(np.mean(by_kind[key])) for key in sorted(by_kind)}
