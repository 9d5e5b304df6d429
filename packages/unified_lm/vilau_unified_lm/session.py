"""A trained unified LM in use: strings and pictures in, strings and pictures out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vilau_common.data.conversation import USER, VIDEO, Turn
from vilau_common.errors import UserError
from vilau_common.images import Picture, open_image, to_array, to_tensor
from vilau_unified_lm.convert.layout import is_official
from vilau_unified_lm.document import Document, TextSegment
from vilau_unified_lm.generation.engine import GREEDY, Engine
from vilau_unified_lm.generation.loop import Listener
from vilau_unified_lm.generation.request import Begin, Event, PictureEvent, Request, TextPart
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.model import UnifiedLM, load_unified_lm, model_directory
from vilau_unified_lm.vicuna import builder_of
from vilau_unified_lm.vila.model import is_vila
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.clip import load_text_tokenizer

# What is not drawn yet.
GREY = 128

Watcher = Callable[[int, Picture, float], None]
"""(index of the prompt, the picture so far uint8 [H, W, 3], the share of it that is drawn)."""


class Session:
    """Model, text tokenizer and engine together."""

    def __init__(self, model: UnifiedLM, tokenizer: PreTrainedTokenizerBase, compile: str = "none") -> None:
        """compile: as the engine's."""
        self.model = model
        self.text_tokenizer = tokenizer
        self.image_tokenizer = model.image_tokenizer
        books = self.image_tokenizer
        vocabulary = Vocabulary.from_tokenizer(tokenizer, books.codebook_size, books.depth)
        self.builder = builder_of(model.config.conversation, tokenizer, vocabulary)
        self.engine = Engine(model, compile)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        device: str = "cpu",
        compile: str = "none",
        dtype: torch.dtype | str = "auto",
        device_map: str | dict[str, Any] | None = None,
    ) -> Session:
        """From a run directory (of an LM or a whole line), its model/, or a checkpoint of the official code.

        compile: as the engine's. dtype: 'auto' takes the stored one. device_map: as `from_pretrained` takes it, in
        place of `device`. Raises UserError where there is no such model, a VILA, or no such device.
        """
        for place in (device, device_map):
            if isinstance(place, str) and place.startswith("cuda") and not torch.cuda.is_available():
                raise UserError(f"device is {place}, but torch finds no GPU here; use the CPU")
        if is_official(directory):
            from vilau_unified_lm.convert.read import load_official

            model, tokenizer = load_official(directory, dtype=dtype, device_map=device_map)
        else:
            path = model_directory(directory)
            if is_vila(path):
                raise UserError(
                    f"{directory} holds a VILA, which answers questions about pictures but has no codes to draw with"
                )
            model, tokenizer = load_unified_lm(path, dtype, device_map), load_text_tokenizer(path)
        if device_map is None:
            model.to(torch.device(device))
        return cls(model, tokenizer, compile)

    def open_image(self, path: Path) -> Picture:
        """A picture file as uint8 [H, W, 3] of the model's size, made square as it was trained."""
        return open_image(path, self.image_tokenizer.image_size, self.model.config.image_fit)

    def encode(self, pictures: Picture) -> npt.NDArray[np.int64]:
        """uint8 [B, H, W, 3] -> codes int64 [B, h, w, D]."""
        codes: npt.NDArray[np.int64] = self.image_tokenizer.encode(self._images(pictures)).cpu().numpy()
        return codes

    def decode(self, codes: Tensor) -> Picture:
        """codes int64 [..., h, w, D] -> uint8 [..., H, W, 3]."""
        flat = to_array(self.image_tokenizer.decode(codes.reshape(-1, *codes.shape[-3:])))
        return flat.reshape(*codes.shape[:-3], *flat.shape[1:])

    def reconstruct(self, pictures: Picture) -> Picture:
        """uint8 [B, H, W, 3] through codes and back."""
        return to_array(self.image_tokenizer.decode(self.image_tokenizer.encode(self._images(pictures))))

    def answer(
        self, codes: Sequence[npt.NDArray[np.int64]], questions: Sequence[str], max_tokens: int
    ) -> list[str]:
        """The likeliest answer to each question about the picture with these codes, int64 [h, w, D]."""
        pairs = zip(codes, questions, strict=True)
        prompts = [self.builder.question_prompt(code, question) for code, question in pairs]
        return self._written(prompts, max_tokens)

    def answer_about_video(self, pictures: Picture, question: str, max_tokens: int) -> str:
        """The likeliest answer about a video, uint8 [N, H, W, 3]: frames spread evenly over all of it are seen."""
        wanted = self.model.config.video_frames
        chosen = np.round(np.linspace(0, len(pictures) - 1, wanted)).astype(int)
        turns = [Turn(USER, VIDEO + question)]
        prompt = self.builder.conversation(turns, videos=[list(self.encode(pictures[chosen]))])
        return self._written([prompt], max_tokens)[0]

    def draw(
        self,
        prompts: Sequence[str],
        sampling: Sampling,
        seeds: Sequence[int],
        negative: str = "",
        watch: Watcher | None = None,
    ) -> Picture:
        """uint8 [B, H, W, 3], one picture a prompt, each with its own seed.

        negative: what guidance leads away from; empty: the blank prompt. watch: told of each row of positions.
        """
        documents = [self.builder.drawing_prompt(prompt) for prompt in prompts]
        away = self.builder.drawing_prompt(negative)
        listener = None if watch is None else self._watching(watch)
        return self.decode(self.engine.draw(documents, away, sampling, seeds, listener))

    def edit(
        self,
        pictures: Picture,
        instructions: Sequence[str],
        sampling: Sampling,
        seeds: Sequence[int],
        watch: Watcher | None = None,
    ) -> Picture:
        """uint8 [B, H, W, 3] changed as its instruction says, each with its own seed.

        Guidance leads away from the blank prompt of drawings: an edit without its instruction is never trained. watch:
        as in `draw`.
        """
        pairs = zip(self.encode(pictures), instructions, strict=True)
        documents = [self.builder.editing_prompt(codes, instruction) for codes, instruction in pairs]
        away = self.builder.drawing_prompt("")
        listener = None if watch is None else self._watching(watch)
        return self.decode(self.engine.draw(documents, away, sampling, seeds, listener))

    def film(
        self,
        prompts: Sequence[str],
        frames: int,
        sampling: Sampling,
        seeds: Sequence[int],
        negative: str = "",
        watch: Watcher | None = None,
    ) -> Picture:
        """uint8 [B, frames, H, W, 3], one video a prompt; else as `draw`. watch: sees the frame that is drawn."""
        documents = [self.builder.filming_prompt(prompt) for prompt in prompts]
        away = self.builder.filming_prompt(negative)
        listener = None if watch is None else self._watching(watch)
        return self.decode(self.engine.film(documents, away, frames, sampling, seeds, listener))

    def generate(
        self,
        prompts: Sequence[Document],
        positions: int,
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        text: Sampling = GREEDY,
        frames: int = 8,
        stop: Sequence[str] = (),
        on_event: Listener | None = None,
    ) -> list[list[str | Picture]]:
        """What follows each prompt, text and pictures as the model decides, at most so many positions.

        Images are uint8 [H, W, 3], videos [frames, H, W, 3]. A text ends before any of the strings in `stop`, and its
        sample with it.
        """
        blank = self.builder.drawing_prompt("")
        requests = [
            Request(
                prompt=prompt,
                negative=blank,
                begin=self._begins(prompt),
                seed=seed,
                positions=positions,
                frames=frames,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        vocabulary = self.builder.vocabulary
        answers = self.engine.generate(
            requests,
            visual=sampling,
            text=text,
            ends={vocabulary.end, self.builder.chat.end},
            marks=vocabulary,
            stop=(lambda _, ids: any(word in self.text(ids) for word in stop)) if stop else None,
            on_event=on_event,
        )
        results: list[list[str | Picture]] = []
        for answer in answers:
            results.append([])
            for part in answer.parts:
                if isinstance(part, TextPart):
                    results[-1].append(_before(self.text(part.ids), stop))
                else:
                    results[-1].append(self.decode(part.codes))
        return results

    def text(self, ids: Sequence[int]) -> str:
        """Text ids in words."""
        words: str = self.text_tokenizer.decode(ids, skip_special_tokens=True)
        return words.strip()

    def preview(self, codes: Tensor) -> Picture:
        """A picture as far as it is drawn, codes int64 [t, D] with t >= 1; uint8 [H, W, 3], the rest is grey."""
        height, width = self.image_tokenizer.grid
        place = torch.arange(height * width, device=codes.device)
        # The decoder wants a whole picture; the rest goes on as the last position.
        whole = codes[place.clamp(max=len(codes) - 1)].view(height, width, -1)
        picture = self.decode(whole)
        side = np.array(picture.shape[:2])
        rows, columns = (np.arange(n) * cells // n for n, cells in zip(side, (height, width), strict=True))
        picture[rows[:, None] * width + columns >= len(codes)] = GREY
        return picture

    def _watching(self, watch: Watcher) -> Listener:
        height, width = self.image_tokenizer.grid

        def listen(event: Event) -> None:
            if isinstance(event, PictureEvent) and len(event.codes) % width == 0:
                frame = (len(event.codes) - 1) // (height * width) * height * width
                share = len(event.codes) / event.positions
                watch(event.sample, self.preview(event.codes[frame:]), share)

        return listen

    def _begins(self, prompt: Document) -> Begin:
        vocabulary, last = self.builder.vocabulary, prompt.segments[-1]
        begins = {vocabulary.image_start: Begin.IMAGE, vocabulary.video_start: Begin.VIDEO}
        return begins.get(last.ids[-1], Begin.TEXT) if isinstance(last, TextSegment) else Begin.TEXT

    def _images(self, pictures: Picture) -> Tensor:
        return to_tensor(pictures).to(self.model.device)

    def _written(self, prompts: Sequence[Document], max_tokens: int) -> list[str]:
        """Answers of at most `max_tokens`, and of no more than the model's context has room for."""
        context = int(self.model.config.backbone_config.max_position_embeddings)
        max_tokens = max(1, min(max_tokens, context - max(len(prompt) for prompt in prompts)))
        rows = self.engine.write(prompts, self.builder.chat.end, max_tokens, GREEDY, [0] * len(prompts))
        return [self.text(row) for row in rows]


def _before(text: str, stop: Sequence[str]) -> str:
    """The text before the first of these strings."""
    return text[: min((text.index(word) for word in stop if word in text), default=len(text))]
