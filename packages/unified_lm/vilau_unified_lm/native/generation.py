"""Hugging Face's `generate` by the engine: ids and pixels in, ids out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from vilau_common.errors import UserError
from vilau_unified_lm.document import Codes, Document, TextSegment
from vilau_unified_lm.generation.engine import GREEDY, Engine
from vilau_unified_lm.generation.loop import Listener, text_ids
from vilau_unified_lm.generation.request import Event, Finish, Request, TextEvent
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.native.arguments import GENERATION_MODES
from vilau_unified_lm.native.ids import generated_ids, prompt_document
from vilau_unified_lm.native.options import (
    BLANK_IMAGE,
    BLANK_VIDEO,
    CACHES,
    text_sampling,
    visual_sampling,
)
from vilau_unified_lm.vocabulary import Vocabulary

SEEDS = 2**31  # by themselves they are below


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments of `VilaUForMultimodalLM.generate`, whose docstring says what they are."""

    input_ids: Tensor
    attention_mask: Tensor | None
    pixel_values: Tensor | None
    mode: str
    seed: int | Sequence[int] | None
    frames: int
    negative_ids: Tensor | None
    negative_mask: Tensor | None
    streamer: BaseStreamer | None


def generate(model: UnifiedLM, vocabulary: Vocabulary, config: GenerationConfig, asked: Asked) -> Tensor:
    """Ids int64 as `VilaUForMultimodalLM.generate` says. Raises UserError before anything is computed."""
    if asked.mode not in GENERATION_MODES:
        raise UserError(f"generation_mode is {asked.mode!r}; the choices are {', '.join(GENERATION_MODES)}")
    if asked.streamer is not None and len(asked.input_ids) > 1:
        raise UserError(f"a streamer follows one prompt, but {len(asked.input_ids)} are given")
    samples = 1 if config.num_return_sequences is None else config.num_return_sequences
    if samples < 1:
        raise UserError(f"num_return_sequences is {samples}; it is at least 1")
    if asked.streamer is not None and samples > 1:
        raise UserError(f"a streamer follows one sample, but num_return_sequences is {samples}")
    text, visual = text_sampling(config), visual_sampling(config)
    engine = Engine(model, CACHES[config.cache_implementation])
    prompts = [prompt for prompt in _prompts(model, vocabulary, asked) for _ in range(samples)]
    seeds = _seeds(asked.seed, len(prompts))
    listener = None if asked.streamer is None else _listener(asked.streamer, vocabulary)
    if asked.streamer is not None:
        asked.streamer.put(asked.input_ids.cpu())
    try:
        if asked.mode in ("image", "video"):
            video = asked.mode == "video"
            mark = vocabulary.video_start if video else vocabulary.image_start
            blank = getattr(config, BLANK_VIDEO if video else BLANK_IMAGE)
            prompts = [_ending_at(prompt, mark) for prompt in prompts]
            away = [_ending_at(prompt, mark) for prompt in _negatives(vocabulary, asked, blank, samples)]
            if video:
                codes = engine.film(prompts, away, asked.frames, visual, seeds, listener)
            else:
                codes = engine.draw(prompts, away, visual, seeds, listener)
            return vocabulary.visual_ids(codes).flatten(1)
        rooms = [_room(model, config, prompt) for prompt in prompts]
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        if asked.mode == "text":
            requests = [
                Request(prompt=prompt, seed=seed, positions=room)
                for prompt, seed, room in zip(prompts, seeds, rooms, strict=True)
            ]
            answers = engine.generate(requests, visual=GREEDY, text=text, ends=ends, on_event=listener)
            closed = [[ends[0]] if answer.finish is Finish.END else [] for answer in answers]
            rows = [
                torch.tensor(text_ids(answer) + end, dtype=torch.int64)
                for answer, end in zip(answers, closed, strict=True)
            ]
            before = asked.input_ids.cpu().repeat_interleave(samples, dim=0)
            return torch.cat([before, _padded(rows, vocabulary.pad)], dim=1)
        away = _negatives(vocabulary, asked, getattr(config, BLANK_IMAGE), samples)
        requests = [
            Request(
                prompt=prompt,
                negative=_ending_at(negative, vocabulary.image_start),
                seed=seed,
                positions=room,
                frames=asked.frames,
            )
            for prompt, negative, seed, room in zip(prompts, away, seeds, rooms, strict=True)
        ]
        answers = engine.generate(
            requests, visual=visual, text=text, ends=ends, marks=vocabulary, on_event=listener
        )
        return _padded([generated_ids(answer, vocabulary) for answer in answers], vocabulary.pad)
    finally:
        if asked.streamer is not None:
            asked.streamer.end()


def _prompts(model: UnifiedLM, vocabulary: Vocabulary, asked: Asked) -> list[Document]:
    tower = model.image_tokenizer
    mask = torch.ones_like(asked.input_ids) if asked.attention_mask is None else asked.attention_mask
    rows = [ids[there.bool()].tolist() for ids, there in zip(asked.input_ids, mask, strict=True)]
    positions = tower.grid[0] * tower.grid[1]
    waiting: list[Codes] = []
    if asked.pixel_values is not None:
        pixels = asked.pixel_values.to(model.device, model.dtype)
        size = (3, tower.image_size, tower.image_size)
        if tuple(pixels.shape[1:]) != size:
            raise UserError(
                f"pixel_values has the shape {list(pixels.shape)}; the model reads [N, 3, {size[1]}, {size[2]}]"
            )
        waiting = list(tower.encode(pixels).cpu().numpy())
    prompts = []
    for row, ids in enumerate(rows):
        count = sum(id_ == vocabulary.text_size for id_ in ids) // positions
        last = row == len(rows) - 1
        own, waiting = (waiting, []) if last else (waiting[:count], waiting[count:])
        prompts.append(prompt_document(ids, own, vocabulary))
    return prompts


def _negatives(vocabulary: Vocabulary, asked: Asked, blank: Sequence[int], samples: int) -> list[Document]:
    """What guidance leads each sample away from."""
    prompts = len(asked.input_ids)
    given = asked.negative_ids
    if given is None:
        return [prompt_document(blank, [], vocabulary)] * (prompts * samples)
    if len(given) not in (1, prompts):
        raise UserError(
            f"{prompts} prompts came with {len(given)} negative prompts; give one, or one a prompt"
        )
    mask = torch.ones_like(given) if asked.negative_mask is None else asked.negative_mask
    rows = [ids[there.bool()].tolist() for ids, there in zip(given, mask, strict=True)]
    rows *= prompts // len(rows)
    return [prompt_document(ids, [], vocabulary) for ids in rows for _ in range(samples)]


def _ending_at(prompt: Document, mark: int) -> Document:
    """The prompt, which begins a picture with this mark."""
    last = prompt.segments[-1]
    if isinstance(last, TextSegment) and last.ids[-1:] == (mark,):
        return prompt
    return Document((*prompt.segments, TextSegment((mark,), supervised=False)))


def _room(model: UnifiedLM, config: GenerationConfig, prompt: Document) -> int:
    """How many positions may follow a prompt."""
    context = int(model.config.backbone_config.max_position_embeddings)
    left = context - len(prompt)
    if config.max_new_tokens is not None:
        wanted = config.max_new_tokens
    elif config.max_length is not None:
        wanted = config.max_length - len(prompt)
    else:
        wanted = left
    if wanted < 1:
        raise UserError(
            f"{wanted} new tokens are asked for after a prompt of {len(prompt)}; set max_new_tokens to 1 or more"
        )
    return max(1, min(wanted, left))  # a prompt without room is told of by the engine


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """One a sample."""
    if seed is None:
        return [int(value) for value in torch.randint(SEEDS, (count,))]
    if isinstance(seed, int):
        return [seed + number for number in range(count)]
    if len(seed) != count:
        raise UserError(f"{count} samples came with {len(seed)} seeds; give one seed, or one a sample")
    return list(seed)


def _listener(streamer: BaseStreamer, vocabulary: Vocabulary) -> Listener:
    def listen(event: Event) -> None:
        if isinstance(event, TextEvent):
            streamer.put(torch.tensor(event.ids[-1:]))
        else:
            streamer.put(vocabulary.visual_ids(event.codes[-1].cpu()))

    return listen


def _padded(rows: Sequence[Tensor], pad: int) -> Tensor:
    """int64 [B, longest], padded at the end."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad)
