"""The loop of generation: whatever the rows of a batch are at, one LM step and, where one draws, one position for all.

The device is asked for an answer once a text token, and never while pictures alone are drawn. Rows that are done stay
in the batch, masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vilau_unified_lm.document import Document
from vilau_unified_lm.generation.decoding import Decoding
from vilau_unified_lm.generation.painter import Painter
from vilau_unified_lm.generation.request import (
    Event,
    Generated,
    ImagePart,
    Part,
    PictureEvent,
    Request,
    TextEvent,
    TextPart,
    VideoPart,
)
from vilau_unified_lm.generation.row import NOTHING_READ, Feed, Phase, Picture, Row
from vilau_unified_lm.generation.sampling import Sampling, sample, text_seed, uniform_draws
from vilau_unified_lm.vocabulary import Vocabulary

Listener = Callable[[Event], None]


class Loop:
    """Generates B rows over a batch that has read its prompts; one object, one use."""

    def __init__(
        self,
        state: Decoding,
        rows: Sequence[Row],
        text: Sampling,
        painter: Painter | None = None,
        marks: Vocabulary | None = None,
        on_event: Listener | None = None,
    ) -> None:
        """state: of B rows, or of 2B with guidance. painter: None where no row draws. marks: as the rows'."""
        self.state, self.rows, self.text = state, rows, text
        self.painter, self.marks, self.on_event = painter, marks, on_event
        self.device = state.hidden.device
        self.guided = len(state.hidden) > len(rows)
        self.embed, self.head = state.llm.get_input_embeddings(), state.llm.get_output_embeddings()
        self.uniform: Tensor | None = None
        if text.temperature > 0:
            seeds = [text_seed(row.request.seed) for row in rows]
            most = max(row.request.positions for row in rows)
            self.uniform = uniform_draws(seeds, max(most, 1), self.device)
        self._feeds: list[Feed] = []
        self._plan: Plan

    def run(self) -> list[Generated]:
        """Until every row is done."""
        while True:
            phases = [row.phase for row in self.rows]
            if all(phase is Phase.DONE for phase in phases):
                return [self._generated(row) for row in self.rows]
            tokens = self._sample() if Phase.TEXT in phases else []
            drawn = None
            if Phase.VISUAL in phases:
                assert self.painter is not None
                drawn = self.painter.position(self.state.hidden)
            feeds = [self._step(row, tokens) for row in self.rows]
            if any(feed not in NOTHING_READ for feed in feeds):
                self._feed(feeds, drawn)

    def _step(self, row: Row, tokens: Sequence[int]) -> Feed:
        """Move one row on; returns what the LM reads of it."""
        phase = row.phase
        if phase is Phase.DONE:
            return Feed.NOTHING
        if phase is Phase.CLOSING:
            return row.close()
        if phase is Phase.VISUAL:
            feed = row.draw()
            if self.on_event is not None:
                picture = row.pictures[-1]
                codes = self._codes(row, picture)
                self.on_event(PictureEvent(row.index, len(row.pictures) - 1, codes, picture.positions))
            return feed
        before = row.tokens
        feed = row.take(tokens[row.index])
        if self.on_event is not None and row.tokens > before:
            text = row.parts[-1]
            assert isinstance(text, list)
            self.on_event(TextEvent(row.index, list(text)))
        return feed

    def _sample(self) -> list[int]:
        """The next token of every row; those of rows that write no text mean nothing."""
        logits = self.head(self.state.hidden[: len(self.rows)])
        if self.marks is not None:
            logits = self._without_misplaced_marks(logits, self.marks)
        if self.uniform is None:
            tokens = logits.argmax(dim=-1)
        else:
            last = self.uniform.shape[1] - 1
            counts = torch.tensor([[min(row.sampled, last)] for row in self.rows], device=self.device)
            tokens = sample(logits, self.uniform.gather(1, counts).squeeze(1), self.text)
        ids: list[int] = tokens.tolist()
        return ids

    def _without_misplaced_marks(self, logits: Tensor, marks: Vocabulary) -> Tensor:
        """Closing marks never stand in text, opening ones only where the picture behind them has room."""
        ids = [marks.image_end, marks.video_end, marks.image_start, marks.video_start]
        barred = [
            [True, True, not row.may_open(video=False), not row.may_open(video=True)] for row in self.rows
        ]
        where = torch.tensor(ids, device=self.device)
        return logits.index_copy(
            1, where, logits[:, where].masked_fill(torch.tensor(barred, device=self.device), -torch.inf)
        )

    def _feed(self, feeds: list[Feed], drawn: Tensor | None) -> None:
        """One LM step. drawn: what it reads of the positions just drawn, float [B, hidden]."""
        if feeds != self._feeds:
            self._feeds, self._plan = feeds, Plan.of(feeds, self.guided, self.device)
        plan = self._plan
        if plan.opens is not None:
            # Every picture of an unconditional row stands behind its prompt alone.
            self.state.rewind(plan.opens)
        if plan.tokens is None:
            assert drawn is not None
            inputs = drawn
        else:
            inputs = self.embed(torch.tensor([row.token for row in self.rows], device=self.device))
            if drawn is not None:
                inputs = torch.where(plan.tokens, inputs, drawn.to(inputs.dtype))
        self.state.advance(inputs.repeat(2, 1) if self.guided else inputs, plan.moves)
        if plan.drawn is not None:
            assert self.painter is not None
            self.painter.move(plan.drawn)

    def _generated(self, row: Row) -> Generated:
        parts: list[Part] = []
        for part in row.parts:
            if isinstance(part, list):
                parts.append(TextPart(part))
                continue
            assert self.painter is not None
            codes = self._codes(row, part).unflatten(0, (-1, *self.painter.books.grid))
            parts.append(VideoPart(codes) if part.video else ImagePart(codes[0]))
        return Generated(parts, row.finish)

    def _codes(self, row: Row, picture: Picture) -> Tensor:
        """What is drawn of a picture, int64 [t, D]."""
        assert self.painter is not None
        return self.painter.codes[row.index, picture.start : picture.start + picture.drawn].clone()


@dataclass
class Plan:
    """What each of B rows feeds, as masks on the device; kept while no row changes what it is at.

    With guidance there are 2B rows of the LM, of which the latter move while a picture is drawn.
    """

    tokens: Tensor | None  # bool [B, 1], rows that feed a token; None: all feed visual positions
    drawn: Tensor | None  # int64 [B], 1 where a visual position counts; None: nowhere
    opens: Tensor | None  # bool [2B], unconditional rows that begin a picture; None: nowhere
    moves: Tensor  # int64 [B or 2B], 1 where the LM's row goes on

    @classmethod
    def of(cls, feeds: Sequence[Feed], guided: bool, device: torch.device) -> Plan:
        def mask(*kinds: Feed) -> Tensor:
            return torch.tensor([feed in kinds for feed in feeds], device=device)

        tokens, opening = mask(Feed.TOKEN, Feed.OPENING), mask(Feed.OPENING)
        read, drawn = mask(Feed.VISUAL), mask(Feed.VISUAL, Feed.UNREAD)
        moves = tokens | read
        if guided:
            moves = torch.cat([moves, opening | read])
        opens = guided and Feed.OPENING in feeds
        return cls(
            tokens=tokens.unsqueeze(1) if Feed.TOKEN in feeds or Feed.OPENING in feeds else None,
            drawn=drawn.long() if Feed.VISUAL in feeds or Feed.UNREAD in feeds else None,
            opens=torch.cat([torch.zeros_like(opening), opening]) if opens else None,
            moves=moves.long(),
        )


def write_text(
    state: Decoding,
    prompts: Sequence[Document],
    end: int,
    max_tokens: int,
    sampling: Sampling,
    seeds: Sequence[int],
) -> list[list[int]]:
    """Text alone, after prompts that `state` has read: ids without the closing `end`, at most `max_tokens`."""
    rows = [
        Row(index, Request(prompt=prompt, seed=seed, positions=max_tokens), 1, (end,), None, None)
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    return [text_ids(generated) for generated in Loop(state, rows, sampling).run()]


def text_ids(generated: Generated) -> list[int]:
    """The text of a sample, all its pieces one after the other."""
    return [id_ for part in generated.parts if isinstance(part, TextPart) for id_ in part.ids]
