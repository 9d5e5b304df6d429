"""The engine: text, images, videos and what interleaves them, for batches of prompts of different lengths.

A step of a batch is one LM forward and, where a row draws, D depth steps; both axes are cached (`decoding`, `painter`).
Weights are one class (`UnifiedLM`), generation another. An engine of fixed shapes keeps the memory and the graphs of
its last batch for the next one of that size; any other holds no state between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from vilau_common.errors import UserError
from vilau_unified_lm.document import Document, TextSegment
from vilau_unified_lm.generation.decoding import Decoding, dense_attention
from vilau_unified_lm.generation.loop import Listener, Loop, text_ids
from vilau_unified_lm.generation.painter import Painter
from vilau_unified_lm.generation.prompts import left_padded
from vilau_unified_lm.generation.request import Begin, Generated, ImagePart, Request, VideoPart
from vilau_unified_lm.generation.row import Row, Stop
from vilau_unified_lm.generation.sampling import Sampling, uniform_draws
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.vocabulary import Vocabulary

GREEDY = Sampling(temperature=0, top_k=None, top_p=1.0, guidance=1.0)

Item = TypeVar("Item")

COMPILE = ("none", "static", "graph")
# Captured shapes come in multiples of this many places, so that prompts of like length share their graphs.
PLACES = 64


class Kept(Generic[Item]):
    """The last thing built, for as long as the next one asked for has the same key."""

    def __init__(self) -> None:
        self.key: tuple[object, ...] | None = None
        self.item: Item | None = None

    def get(self, key: tuple[object, ...], build: Callable[[], Item]) -> Item:
        if self.item is None or self.key != key:
            self.item = None  # its memory goes before the new one takes some
            self.key, self.item = key, build()
        return self.item


class Engine:
    """Draws pictures and videos from prompts, writes text after prompts, or lets the model choose.

    compile: 'none': every step reads only what is there, op by op; the numerical reference. 'graph': fixed shapes, the
    LM step and the depth loop each captured as a CUDA graph. 'static': the same shapes op by op, to look for what a
    graph hides.
    """

    def __init__(self, model: UnifiedLM, compile: str = "none") -> None:
        """Raises UserError for a choice that this machine does not have."""
        if compile not in COMPILE:
            raise UserError(f"compile is {compile!r}; the choices are {', '.join(COMPILE)}")
        if compile == "graph" and model.device.type != "cuda":
            raise UserError(
                f"compile=graph captures CUDA graphs, but the model is on {model.device}; use compile=none there"
            )
        self.model = model.eval()
        self.tokenizer = model.image_tokenizer
        self.compile = compile
        self._states: Kept[Decoding] = Kept()
        self._painters: Kept[Painter] = Kept()

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        *,
        visual: Sampling,
        text: Sampling = GREEDY,
        ends: Collection[int] = (),
        marks: Vocabulary | None = None,
        stop: Stop | None = None,
        on_event: Listener | None = None,
    ) -> list[Generated]:
        """One result a request; requests of every kind may stand together.

        visual: how codes are drawn, guidance included; text: how text is sampled (guidance does not apply). ends: ids
        that close a text. marks: the vocabulary whose marks the model opens pictures with, and which are closed for it;
        None: what begins with a picture ends behind it, all else is text. stop: asked after each text token whether
        that sample ends. on_event: told of each token and position as soon as it is there; what it raises ends it all.

        A sample depends on its own request and seed, not on the batch around it. Raises UserError for what does not fit
        the model, before anything is computed.
        """
        if not requests:
            return []
        visual.by_depth(self.tokenizer.depth)
        grid = self.tokenizer.grid[0] * self.tokenizer.grid[1]
        rows = [Row(index, request, grid, ends, marks, stop) for index, request in enumerate(requests)]
        for row in rows:
            _check(row)
        prompts, room = [request.prompt for request in requests], [request.positions for request in requests]
        draws = any(row.largest for row in rows)
        if draws and visual.guidance != 1:
            prompts, room = [*prompts, *_negatives(rows)], [*room, *(row.largest for row in rows)]
        with dense_attention(self.model.llm):
            state = self._begin(prompts, room)
            painter = self._painter(state, rows, visual) if draws else None
            return Loop(state, rows, text, painter, marks, on_event).run()

    def draw(
        self,
        prompts: Sequence[Document],
        negative: Document | Sequence[Document],
        sampling: Sampling,
        seeds: Sequence[int],
        on_event: Listener | None = None,
    ) -> Tensor:
        """Codes int64 [B, h, w, D], one picture a prompt.

        prompts: documents that end at <image_start>; negative: what guidance leads away from, one for all or one a
        prompt, ending there, too (a blank prompt as a rule); seeds: one a prompt.
        """
        return self._draw(prompts, negative, sampling, seeds, Begin.IMAGE, 1, on_event)[:, 0]

    def film(
        self,
        prompts: Sequence[Document],
        negative: Document | Sequence[Document],
        frames: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_event: Listener | None = None,
    ) -> Tensor:
        """Codes int64 [B, frames, h, w, D], one video a prompt; prompts end at <video_start>, else as `draw`."""
        if frames < 1:
            raise UserError(f"a video of {frames} frames is asked for; it has at least 1")
        return self._draw(prompts, negative, sampling, seeds, Begin.VIDEO, frames, on_event)

    def write(
        self,
        prompts: Sequence[Document],
        end: int,
        max_tokens: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_event: Listener | None = None,
    ) -> list[list[int]]:
        """Text ids after each prompt, without the closing `end`; at most `max_tokens`. Guidance does not apply."""
        _check_seeds(prompts, seeds)
        requests = [
            Request(prompt=prompt, seed=seed, positions=max_tokens)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        written = self.generate(requests, visual=GREEDY, text=sampling, ends=(end,), on_event=on_event)
        return [text_ids(generated) for generated in written]

    def _draw(
        self,
        prompts: Sequence[Document],
        negative: Document | Sequence[Document],
        sampling: Sampling,
        seeds: Sequence[int],
        begin: Begin,
        frames: int,
        on_event: Listener | None,
    ) -> Tensor:
        """Codes int64 [B, frames, h, w, D]."""
        _check_seeds(prompts, seeds)
        negatives = [negative] * len(prompts) if isinstance(negative, Document) else negative
        height, width = self.tokenizer.grid
        requests = [
            Request(
                prompt=prompt,
                negative=away,
                begin=begin,
                seed=seed,
                positions=frames * height * width,
                frames=frames,
            )
            for prompt, away, seed in zip(prompts, negatives, seeds, strict=True)
        ]
        codes = []
        for generated in self.generate(requests, visual=sampling, on_event=on_event):
            (part,) = generated.parts
            assert isinstance(part, ImagePart | VideoPart)
            codes.append(part.codes.view(frames, height, width, -1))
        return torch.stack(codes)

    # --- the batch's state --------------------------------------------------------------------------------------

    def _begin(self, prompts: Sequence[Document], room: Sequence[int]) -> Decoding:
        """A batch that has read its prompts."""
        model = self.model
        context = int(model.config.backbone_config.max_position_embeddings)
        batch = left_padded(prompts, self.tokenizer.depth, context, room).to(model.device)
        capacity = self._rounded(batch.token_ids.shape[1] + max(room))
        features = self.tokenizer.embed_codes(batch.codes).sum(dim=-2)
        inputs = model.embed(batch, features)
        rows = len(prompts)
        if self.compile == "none":
            state = Decoding(model.llm, rows, capacity)
        else:
            state = self._states.get(
                (rows, capacity), lambda: Decoding(model.llm, rows, capacity, static=True)
            )
        state.begin(batch, inputs)
        if self.compile == "graph" and not state.captured:
            state.capture()
        return state

    def _painter(self, state: Decoding, rows: Sequence[Row], sampling: Sampling) -> Painter:
        """What draws for a batch that has read its prompts."""
        positions = self._rounded(max(row.request.positions for row in rows))

        def build() -> Painter:
            return Painter(self.model, sampling, len(rows), positions, state.hidden)

        if self.compile == "none":
            painter = build()
        else:
            painter = self._painters.get((len(rows), positions, sampling), build)
        depth = self.tokenizer.depth
        uniform = uniform_draws([row.request.seed for row in rows], positions * depth, state.hidden.device)
        painter.begin(uniform.unflatten(1, (positions, depth)))
        if self.compile == "graph" and not painter.captured:
            painter.capture(state.hidden)
        return painter

    def _rounded(self, places: int) -> int:
        return places if self.compile == "none" else -(-places // PLACES) * PLACES


def _check(row: Row) -> None:
    """Raises UserError for a request that cannot be fulfilled."""
    asked = row.request.positions
    if row.pictures and row.pictures[0].positions > asked:
        raise UserError(
            f"the picture that a prompt begins takes {row.pictures[0].positions} positions, but only {asked} are "
            "asked for"
        )


def _negatives(rows: Sequence[Row]) -> list[Document]:
    """The unconditional prompt of each row, behind the same mark as its own where that has one."""
    filler = next((row.request.negative for row in rows if row.largest), None)
    negatives = []
    for row in rows:
        request = row.request
        negative = request.negative if row.largest else filler
        if negative is None:
            raise UserError(
                "guidance needs a negative prompt for every prompt that draws; give the blank one"
            )
        if request.begin is not Begin.TEXT:
            negative = _behind_mark(negative, _last_id(request.prompt))
        negatives.append(negative)
    return negatives


def _last_id(prompt: Document) -> int:
    last = prompt.segments[-1]
    if not isinstance(last, TextSegment) or not last.ids:
        raise UserError("a prompt that begins a picture must end at the mark that opens it")
    return last.ids[-1]


def _behind_mark(prompt: Document, mark: int) -> Document:
    """The prompt with another last token."""
    *before, last = prompt.segments
    if not isinstance(last, TextSegment) or not last.ids:
        raise UserError("a negative prompt must end at a mark that opens a picture")
    return Document((*before, replace(last, ids=(*last.ids[:-1], mark))))


def _check_seeds(prompts: Sequence[Document], seeds: Sequence[int]) -> None:
    # Broadcasting would share a single seed out among all prompts.
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts came with {len(seeds)} seeds; give one seed a prompt")
