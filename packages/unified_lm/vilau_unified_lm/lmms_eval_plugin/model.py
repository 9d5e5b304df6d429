"""lmms-eval's model interface (lmms_eval.api.model.lmms, 0.7) over a unified LM or a VILA.

Of the two kinds of models there, this is a simple one: a request has a text and pictures. Videos, sound, sampling and
several rounds are refused. Its multiple-choice tasks take the smallest number for the best, and so `loglikelihood`
gives the mean cross-entropy, as its own models do, and not the sum of log-probabilities that its docstring names.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lmms_eval.api.model import lmms
from PIL import Image

from vilau_common.errors import UserError
from vilau_common.pictures import FITS, fitted_square
from vilau_unified_lm.evaluation.public.asked import Prompt, open_asked

# For tasks that do not say how long an answer may be.
MAX_NEW_TOKENS = 64

Visuals = Callable[[Any], Sequence[Any]]


class Vilau(lmms):
    """pretrained: a run directory. fit, compile: as of `vilau evaluate-public`."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        fit: str = "resize",
        compile: str = "none",
    ) -> None:
        super().__init__()
        if fit not in FITS:
            raise UserError(f"fit is {fit!r}; it is one of {', '.join(FITS)}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size is {batch_size!r}; name a number, 1 or more")
        # Several processes (accelerate, torchrun): each has its own GPU. Their ranks lmms-eval sets itself.
        if device in (None, "cuda") and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        self.asked = open_asked(Path(pretrained), device, compile)
        self.batch_size, self.fit = int(batch_size), fit

    @property
    def device(self) -> torch.device:
        return self.asked.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The greedy answer to each request, up to the first of its stop strings."""
        limits = [self._max_tokens(request.args[1]) for request in requests]
        answers = [""] * len(requests)
        # Answers of one length limit go together, and so, within it, prompts of like length.
        order = sorted(range(len(requests)), key=lambda index: (limits[index], len(requests[index].args[0])))
        for limit, indices in itertools.groupby(order, key=limits.__getitem__):
            for batch in _batches(list(indices), self.batch_size):
                prompts = []
                for index in batch:
                    context, _, visuals, doc_id, task, split = requests[index].args
                    prompts.append(self._prompt(context, visuals, self.task_dict[task][split][doc_id]))
                for index, text in zip(batch, self.asked.answer(prompts, limit), strict=True):
                    context, settings = requests[index].args[:2]
                    answers[index] = _until(text, settings.get("until", ()))
                    self.cache_hook.add_partial("generate_until", (context, settings), answers[index])
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(mean cross-entropy of the continuation, whether it is the greedy one) of each request."""
        results = []
        for batch in _batches(range(len(requests)), self.batch_size):
            prompts, answers = [], []
            for index in batch:
                context, target, visuals, doc_id, task, split = requests[index].args
                document = self.task_dict[task][split][doc_id]
                prompts.append(self._prompt(context, visuals, document))
                answers.append(target if isinstance(target, str) else target(document))
            for found in self.asked.likelihoods(prompts, answers):
                results.append((float(found.losses.mean()), found.greedy))
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not there."""
        raise NotImplementedError("vilau answers in one round")

    def _prompt(self, context: str, visuals: Visuals, document: Any) -> Prompt:
        pictures = []
        for shown in visuals(document) or ():
            if not isinstance(shown, Image.Image):
                raise UserError(f"a task shows a {type(shown).__name__}, but vilau takes pictures alone here")
            pictures.append(fitted_square(np.asarray(shown.convert("RGB")), self.asked.image_size, self.fit))
        return Prompt(context, tuple(pictures))

    def _max_tokens(self, settings: Mapping[str, Any]) -> int:
        """Raises UserError for sampling."""
        if settings.get("do_sample") or (settings.get("temperature") or 0) > 0:
            raise UserError("a task asks for sampled answers, but vilau's are greedy here")
        return int(settings.get("max_new_tokens", MAX_NEW_TOKENS))


def _batches(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _until(text: str, stops: str | Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop, 1)[0] if stop else text
    return text.strip()
