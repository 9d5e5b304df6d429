"""The processor: text, pictures and videos in, ids and pixels for the model out; and back to strings and PIL pictures.

Prompts are written by the `DocumentBuilder` that training and `Session` use: the same prompt has the same ids here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from vilau_common.data.conversation import (
    IMAGE,
    PLACEHOLDERS,
    USER,
    VIDEO,
    Turn,
    split_at_placeholders,
    without_placeholders,
)
from vilau_common.errors import UserError
from vilau_common.images import to_array, to_tensor
from vilau_common.pictures import Picture
from vilau_unified_lm.config import UnifiedLMConfig
from vilau_unified_lm.document import Codes, Document, TextSegment
from vilau_unified_lm.native.arguments import (
    HUB_OPTIONS,
    check_arguments,
    check_chat,
    check_last,
    shared_out,
)
from vilau_unified_lm.native.ids import prompt_ids
from vilau_unified_lm.native.messages import Chat, read_messages
from vilau_unified_lm.native.pictures import is_image, is_video, read_image, read_video
from vilau_unified_lm.vicuna import document_builder
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.clip import load_text_tokenizer
from vilau_vision_tower.tower import VisionTower

Writer = Callable[[Chat, list[Codes], list[list[Codes]]], Document]
"""(chat, its images' codes, its videos' frames' codes) -> the prompt."""


class VilaUProcessor(ProcessorMixin):
    """What a unified LM reads and writes, as its configuration and tokenizer say.

    tokenizer: with the unified LM's special tokens. image_size: of the square pictures, in pixels; grid: [h, w] visual
    positions of one; codebook_size, depth: K and D. conversation, image_fit, video_frames: as in `UnifiedLMConfig`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_size: int,
        grid: Sequence[int],
        codebook_size: int,
        depth: int,
        conversation: str = "plain",
        image_fit: str = "crop",
        video_frames: int = 8,
    ) -> None:
        super().__init__(tokenizer)
        self.image_size = image_size
        self.grid = list(grid)
        self.codebook_size = codebook_size
        self.depth = depth
        self.conversation = conversation
        self.image_fit = image_fit
        self.video_frames = video_frames
        vocabulary = Vocabulary.from_tokenizer(tokenizer, codebook_size, depth)
        self.builder = document_builder(conversation, tokenizer, vocabulary)

    @classmethod
    def of_model(cls, config: UnifiedLMConfig, tokenizer: PreTrainedTokenizerBase) -> VilaUProcessor:
        """The processor of a model with this configuration."""
        with torch.device("meta"):
            tower = VisionTower(config.tower_config)
        return cls(
            tokenizer,
            tower.image_size,
            tower.grid,
            tower.codebook_size,
            tower.depth,
            config.conversation,
            config.image_fit,
            config.video_frames,
        )

    @classmethod
    def from_pretrained(cls, directory: str | Path, **options: Any) -> VilaUProcessor:
        """Of a model's directory, or a model of the hub; options: where there (`revision`, `token` and so on).

        All follows from the model's configuration and its tokenizer, so any trained run's model/ will do.
        """
        hub = {name: value for name, value in options.items() if name in HUB_OPTIONS}
        stored, _ = UnifiedLMConfig.get_config_dict(directory, **hub)
        if stored.get("model_type") != UnifiedLMConfig.model_type:
            raise UserError(
                f"{directory} holds no unified LM, but a model of type {stored.get('model_type')!r}: expected a "
                "config.json with model_type vilau"
            )
        config, tokenizer = UnifiedLMConfig.from_dict(stored), native_tokenizer(directory, hub)
        return cls.of_model(config, tokenizer)

    @property
    def vocabulary(self) -> Vocabulary:
        """The extended vocabulary."""
        return self.builder.vocabulary

    # --- in -----------------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: str | Sequence[str],
        images: Any = None,
        videos: Any = None,
        audio: None = None,
        *,
        generation_mode: str = "text",
        num_frames: int | None = None,
        padding: bool = True,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Prompts as they stand, nothing added but <s>, with <image> and <video> where pictures and videos stand.

        images, videos: of one prompt one or a list, of several a list with one or a list for each. Each is a file, a
        URL, a PIL picture or an array uint8 [H, W, 3]; a video a file or its frames. A prompt without <image> and
        <video> begins with them. generation_mode: 'image' and 'video' end the prompt where the drawing begins, so the
        text is what to draw. num_frames: of each video at most; the model's own number by itself.

        Returns input_ids and attention_mask int64 [B, L], padded on the left, and with pictures pixel_values float
        [N, 3, H, W] in [-1, 1], images and frames as they stand. Raises UserError for what does not fit together.
        """
        check_arguments(generation_mode, audio, padding, return_tensors)
        texts = [text] if isinstance(text, str) else list(text)
        chats = []
        for words, its_images, its_videos in zip(
            texts,
            shared_out(images, texts, "images", is_image),
            shared_out(videos, texts, "videos", is_video),
            strict=True,
        ):
            if not any(place in words for place in PLACEHOLDERS):
                words = IMAGE * len(its_images) + VIDEO * len(its_videos) + words
            chats.append(Chat([Turn(USER, words)], its_images, its_videos))

        def write(chat: Chat, images: list[Codes], videos: list[list[Codes]]) -> Document:
            if generation_mode in ("image", "video"):
                return self._drawing(chat, images, generation_mode)
            return self.builder.literal(chat.turns[0].text, images, videos)

        return self._batch(chats, write, num_frames)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        chat_template: None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str = "pt",
        generation_mode: str = "text",
        num_frames: int | None = None,
        padding: bool = True,
        processor_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Messages, written as the model was trained: {"role": …, "content": a string or parts} (see `read_messages`).

        generation_mode: 'text' and 'interleaved' end where the answer begins; 'image' and 'video' draw what the last
        message says, and with a picture in it 'image' changes that one. add_generation_prompt: the last message is the
        user's. continue_final_message: it is the assistant's, and goes on. processor_kwargs: generation_mode and
        num_frames, as a pipeline passes them.

        Returns what `__call__` does if return_dict, else its input_ids if tokenize, else the prompt as a string (of a
        list of conversations a list). Raises UserError for a conversation that the model has no form for.
        """
        extra = dict(processor_kwargs or {})
        generation_mode = extra.pop("generation_mode", generation_mode)
        num_frames = extra.pop("num_frames", num_frames)
        if extra:
            raise UserError(
                f"processor_kwargs has {', '.join(extra)}; it may have generation_mode and num_frames"
            )
        if chat_template is not None:
            raise UserError("chat_template is given, but prompts are written as the model was trained")
        check_arguments(generation_mode, None, padding, return_tensors)
        batched = bool(conversation) and not isinstance(conversation[0], Mapping)
        conversations: Any = conversation if batched else [conversation]
        chats = [read_messages(messages) for messages in conversations]
        for chat in chats:
            check_last(chat, add_generation_prompt, continue_final_message)

        def write(chat: Chat, images: list[Codes], videos: list[list[Codes]]) -> Document:
            if generation_mode in ("image", "video"):
                return self._drawing(chat, images, generation_mode)
            document = self.builder.conversation(chat.turns, images, videos)
            return _unclosed(document) if continue_final_message else document

        if tokenize or return_dict:
            batch = self._batch(chats, write, num_frames)
            return batch if return_dict else batch["input_ids"]
        shown = [self._shown(chat, write) for chat in chats]
        return shown if batched else shown[0]

    def _drawing(self, chat: Chat, images: list[Codes], generation_mode: str) -> Document:
        """The prompt of a drawing, a video or a change."""
        words = without_placeholders(chat.turns[-1].text)
        if len(chat.turns) > 1 or chat.turns[0].role != USER or chat.videos:
            raise UserError(
                f"generation_mode is {generation_mode!r}, which takes one message, the user's, and no video"
            )
        if not images:
            builder = self.builder
            return (
                builder.drawing_prompt(words) if generation_mode == "image" else builder.filming_prompt(words)
            )
        parts = split_at_placeholders(chat.turns[0].text)
        if generation_mode == "video" or len(images) > 1 or parts[0] != IMAGE:
            raise UserError("a picture is changed by one message, the picture first and then what to change")
        return self.builder.editing_prompt(images[0], words)

    def _batch(self, chats: Sequence[Chat], write: Writer, num_frames: int | None) -> BatchFeature:
        frames = self.video_frames if num_frames is None else num_frames
        if frames < 1:
            raise UserError(f"num_frames is {frames}; a video has at least 1")
        for chat in chats:
            check_chat(chat)
        pictures: list[Picture] = []
        rows = []
        for chat in chats:
            read = self._read(chat, frames)
            pictures += [picture for _, its in read for picture in its]
            rows.append(prompt_ids(self._written(chat, write, read), self.vocabulary))
        length = max(len(row) for row in rows)
        padded = [[self.vocabulary.pad] * (length - len(row)) + row for row in rows]
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
        data = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
        if pictures:
            data["pixel_values"] = to_tensor(np.stack(pictures))
        return BatchFeature(data)

    def _read(self, chat: Chat, frames: int) -> list[tuple[str, list[Picture]]]:
        """<image> with one picture or <video> with its frames, as they stand in the text."""
        images, videos = iter(chat.images), iter(chat.videos)
        read: list[tuple[str, list[Picture]]] = []
        for turn in chat.turns:
            for part in split_at_placeholders(turn.text):
                if part == IMAGE:
                    read.append((part, [read_image(next(images), self.image_size, self.image_fit)]))
                elif part == VIDEO:
                    read.append(
                        (part, list(read_video(next(videos), self.image_size, self.image_fit, frames)))
                    )
        return read

    def _written(self, chat: Chat, write: Writer, read: Sequence[tuple[str, Sequence[object]]]) -> Document:
        """The prompt, its codes blank: the model makes them of the pixels."""
        blank = np.zeros((*self.grid, self.depth), np.int64)
        images = [blank for place, _ in read if place == IMAGE]
        return write(chat, images, [[blank] * len(its) for place, its in read if place == VIDEO])

    def _shown(self, chat: Chat, write: Writer) -> str:
        """The prompt as a string, <image> for each image and frame; its first token is left to `__call__`."""
        check_chat(chat)
        read = [
            (p, [p]) for turn in chat.turns for p in split_at_placeholders(turn.text) if p in PLACEHOLDERS
        ]
        words = ""
        for segment in self._written(chat, write, read).segments:
            words += self.tokenizer.decode(segment.ids) if isinstance(segment, TextSegment) else IMAGE
        return words.removeprefix(self.tokenizer.decode([self.vocabulary.begin])).lstrip()

    # --- out ----------------------------------------------------------------------------------------------------

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[Any]:
        """What was generated, one item a sample: strings, PIL pictures, lists of frames, or lists of all of them.

        generated_outputs, by generation_mode: 'text': what `generate` returned, ids int64 [B, L]. The others: what the
        model's `decode_image_tokens` (float [B, 3, H, W] in [-1, 1]), `decode_video_tokens` (float [B, frames, 3, H,
        W]) or `decode_interleaved_tokens` made of it.
        """
        mode = generation_mode or "text"
        check_arguments(mode, None, True, "pt")

        def words(ids: Sequence[int] | Tensor) -> str:
            # Visual positions of a prompt have no words.
            known = [int(id_) for id_ in ids if int(id_) < self.vocabulary.text_size]
            return self.tokenizer.decode(
                known,
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            )

        if mode == "text":
            return [words(ids) for ids in generated_outputs]
        if mode == "image":
            return _pil(generated_outputs)
        if mode == "video":
            return [_pil(frames) for frames in generated_outputs]
        shown = {1: lambda part: words(part).strip(), 3: lambda part: _pil(part[None])[0], 4: _pil}
        return [[shown[part.ndim](part) for part in parts] for parts in generated_outputs]


def native_tokenizer(directory: str | Path, hub: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, in a directory or on the hub."""
    if Path(directory).is_dir():
        return load_text_tokenizer(directory)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, **hub)
    return tokenizer


def _pil(images: Tensor) -> list[Image.Image]:
    """float [B, 3, H, W] in [-1, 1] -> B pictures."""
    return [Image.fromarray(picture) for picture in to_array(images)]


def _unclosed(document: Document) -> Document:
    """A conversation whose last answer goes on: without the token that ends it."""
    *before, last = document.segments
    assert isinstance(last, TextSegment)
    return Document((*before, replace(last, ids=last.ids[:-1])))
