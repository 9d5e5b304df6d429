"""The depth axis of generation: the D codes of one visual position, for all rows at once.

D depth steps, each of which reads one new token and looks back at a cache; a code is embedded once. Nothing here looks
at a value from the host, and every shape is fixed, so that the whole loop can be one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vilau_unified_lm.generation.graph import Graph
from vilau_unified_lm.generation.sampling import Sampling, guided, sample
from vilau_unified_lm.model import UnifiedLM


class Painter:
    """Draws the next visual position of each of B rows, and keeps what was drawn.

    With guidance the LM has 2B rows: first those of the prompts, then the unconditional ones.
    """

    def __init__(self, model: UnifiedLM, sampling: Sampling, rows: int, positions: int, like: Tensor) -> None:
        """positions: at most so many visual positions a row count. like: the LM's hidden states [B or 2B, hidden]."""
        self.model, self.books = model, model.image_tokenizer
        self.levels = sampling.by_depth(self.books.depth)
        self.guidance = sampling.guidance
        self.cache = model.depth.start_cache(len(like), like)
        shape = (rows, positions + 1, self.books.depth)  # rows that are done go on drawing the last one
        self.uniform = torch.zeros(shape, device=like.device)
        self.codes = torch.zeros(shape, dtype=torch.long, device=like.device)
        self.drawn = torch.zeros(rows, dtype=torch.long, device=like.device)  # positions so far, of each row
        self.rows = torch.arange(rows, device=like.device)
        self._position: Callable[[Tensor], Tensor] = self._draw

    def begin(self, uniform: Tensor) -> None:
        """Start anew with these random numbers, float [B, positions, D] in [0, 1)."""
        self.uniform[:, :-1] = uniform
        self.drawn.zero_()

    def position(self, hidden: Tensor) -> Tensor:
        """Draws one more position of every row; returns what the LM reads of it, float [B, hidden].

        hidden: float [B or 2B, hidden]. The position counts when `move` says so; else it is drawn over.
        """
        return self._position(hidden)

    def move(self, rows: Tensor) -> None:
        """The position just drawn counts in these rows: int64 [B], 1 or 0."""
        self.drawn.add_(rows)

    def capture(self, like: Tensor) -> None:
        """From now on, a position is one CUDA graph. like: hidden states."""
        self._position = Graph(self._draw, torch.zeros_like(like))

    @property
    def captured(self) -> bool:
        return isinstance(self._position, Graph)

    def _draw(self, hidden: Tensor) -> Tensor:
        depth, guide = self.model.depth, self.guidance != 1
        place = self.drawn
        uniform = self.uniform[self.rows, place]
        self.cache.length = 0
        source, features, codes = hidden, hidden.new_zeros(()), []
        for level, sampling in enumerate(self.levels):
            logits = depth.step(source, self.cache)
            if guide:
                logits = guided(logits, self.guidance)
            codes.append(sample(logits, uniform[:, level], sampling))
            features = features + self.books.embed_depth(codes[-1], level).to(hidden.dtype)
            source = features.repeat(2, 1) if guide else features
        self.codes[self.rows, place] = torch.stack(codes, dim=1)
        height, width = self.books.grid
        return self.model.projector(features, place % (height * width))
