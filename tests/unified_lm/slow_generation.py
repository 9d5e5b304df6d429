"""Generation without any cache and without batches: the whole sequence again for every token."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from tiny_lm import POSITIONS, D, last_hidden
from torch import Tensor

from vilau_unified_lm.document import Document, ImageSegment, Segment, TextSegment
from vilau_unified_lm.generation.sampling import Sampling, sample, uniform_draws
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.vocabulary import Vocabulary


@torch.no_grad()
def draw_slowly(
    model: UnifiedLM,
    prompt: Document,
    negative: Document,
    sampling: Sampling,
    seed: int = 0,
    frames: int = 1,
    skipped: int = 0,
) -> Tensor:
    """Codes int64 [frames * POSITIONS, D]. skipped: positions that the same seed has drawn before."""
    count = skipped + frames * POSITIONS
    uniform = uniform_draws([seed], count * D, torch.device("cpu")).view(count, D)[skipped:]
    temperatures = sampling.depth_temperatures or [sampling.temperature] * D
    drawn = torch.zeros(0, D, dtype=torch.long)
    for place in range(frames * POSITIONS):
        hidden = [last_hidden(model, with_frames(start, drawn)) for start in (prompt, negative)]
        position = torch.zeros(1, D, dtype=torch.long)
        for level in range(D):
            # All depths anew for each code: those after it are not looked at.
            embeddings = model.image_tokenizer.embed_codes(position)
            conditional, unconditional = (
                model.depth.logits(model.depth(state.unsqueeze(0), embeddings))[:, level] for state in hidden
            )
            logits = sampling.guidance * conditional + (1 - sampling.guidance) * unconditional
            settings = Sampling(
                temperature=temperatures[level], top_k=sampling.top_k, top_p=sampling.top_p, guidance=1
            )
            position[:, level] = sample(logits, uniform[place, level : level + 1], settings)
        drawn = torch.cat([drawn, position])
    return drawn


def with_frames(prompt: Document, codes: Tensor) -> Document:
    """The prompt and visual positions int64 [T, D] behind it, frame by frame."""
    frames = codes.split(POSITIONS) if len(codes) else ()
    return Document((*prompt.segments, *(ImageSegment(frame.numpy(), supervised=False) for frame in frames)))


@torch.no_grad()
def write_slowly(model: UnifiedLM, prompt: Document, count: int) -> list[int]:
    """Greedy text ids."""
    ids: list[int] = []
    for _ in range(count):
        written = TextSegment(tuple(ids), supervised=False)
        hidden = last_hidden(model, Document((*prompt.segments, written)))
        ids.append(int(model.llm.get_output_embeddings()(hidden).argmax()))
    return ids


@dataclass
class Told:
    """What an interleaved generation came to: lists of ids and codes int64 [frames, POSITIONS, D]."""

    parts: list[list[int] | Tensor] = field(default_factory=list)
    ended: bool = False


@torch.no_grad()
def generate_slowly(
    model: UnifiedLM,
    prompt: Document,
    negative: Document,
    vocabulary: Vocabulary,
    *,
    positions: int,
    frames: int,
    sampling: Sampling,
    seed: int,
) -> Told:
    """Greedy text with pictures as the model opens them; `positions` count everything that is generated."""
    told, segments, drawn = Told(), list[Segment](prompt.segments), 0
    (blank,) = negative.segments
    assert isinstance(blank, TextSegment)
    while positions > 0:
        logits = model.llm.get_output_embeddings()(last_hidden(model, Document(tuple(segments))))
        sizes = {vocabulary.image_start: 1, vocabulary.video_start: frames}
        barred = [mark for mark, count in sizes.items() if 1 + count * POSITIONS > positions]
        logits[[vocabulary.image_end, vocabulary.video_end, *barred]] = -torch.inf
        token = int(logits.argmax())
        if token == vocabulary.end:
            told.ended = True
            break
        segments.append(TextSegment((token,), supervised=False))
        positions -= 1
        if token not in sizes:
            if not told.parts or isinstance(told.parts[-1], Tensor):
                told.parts.append([])
            told.parts[-1].append(token)  # type: ignore[union-attr]
            continue
        away = Document((TextSegment((*blank.ids[:-1], token), supervised=False),))
        codes = draw_slowly(model, Document(tuple(segments)), away, sampling, seed, sizes[token], drawn)
        told.parts.append(codes.view(-1, POSITIONS, D))
        drawn += len(codes)
        positions -= len(codes)
        segments = list(with_frames(Document(tuple(segments)), codes).segments)
        close = vocabulary.image_end if token == vocabulary.image_start else vocabulary.video_end
        segments.append(TextSegment((close,), supervised=False))
        positions -= 1
    return told
