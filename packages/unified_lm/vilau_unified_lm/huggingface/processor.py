"""The unified LM's processor: messages, texts and pictures in; strings and PIL images out.

Prompts are the document builder's (`document`, `vicuna`), so that a model is asked here as it was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from vilau_common.errors import UserError
from vilau_common.images import to_array
from vilau_unified_lm.huggingface import tokens
from vilau_unified_lm.huggingface.messages import Conversation, messages_of, read_messages
from vilau_unified_lm.huggingface.prompts import Prompts, pictures_of
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.image_processor import VisionTowerImageProcessor

Piece = str | Image.Image | list[Image.Image]


class UnifiedLMProcessor(ProcessorMixin):
    """Text tokenizer and image processor together, and what they must know of the model.

    codebook_size: K; depth: D; grid: (h, w) visual positions of a picture; conversation: the form of prompts, and
    video_frames: how many are taken of a video, both as in the model's configuration.
    """

    def __init__(
        self,
        image_processor: VisionTowerImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        codebook_size: int,
        depth: int,
        grid: Sequence[int],
        conversation: str = "plain",
        video_frames: int = 8,
        chat_template: str | None = None,
    ) -> None:
        """chat_template: the tokenizer's own, which transformers stores apart.

        Raises UserError for a tokenizer without the special tokens.
        """
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        super().__init__(image_processor, tokenizer, chat_template=tokenizer.chat_template)
        self.codebook_size, self.depth, self.grid = codebook_size, depth, list(grid)
        self.conversation, self.video_frames = conversation, video_frames

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.from_tokenizer(self.tokenizer, self.codebook_size, self.depth)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        chat_template: str | None = None,
        *,
        generation_mode: str | None = None,
        negative_prompt: str = "",
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
        padding: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
    ) -> BatchFeature:
        """One conversation or several as a model's inputs.

        conversation: messages {"role": …, "content": text or parts}; parts are {"type": "text", "text": …},
        {"type": "image", "image": picture} (or "path", "url": a file) and {"type": "video", "video": its frames}.
        generation_mode:

            text          the prompt of an answer; where the last message is the assistant's, all of the conversation
            image         the prompt of a drawing: one message of the user, with one picture where that is to be changed
            video         the prompt of a video: one message of the user
            interleaved   one message of the user, to be continued with text and pictures
            None          text and, where the messages are such of a drawing, its prompt besides (`image_prompt_ids`):
                          for pipelines, which do not tell the processor what they will generate

        negative_prompt: what a drawing leads away from, the blank prompt by itself. return_assistant_tokens_mask: adds
        assistant_masks int64 [B, L], 1 where the assistant speaks or shows. processor_kwargs: settings as above, which
        pipelines hand on so. The other settings are transformers', and have one value here: tensors come out.

        Returns input_ids and attention_mask int64 [B, L] (padded in front, V at visual positions), pixel_values float32
        [N, 3, H, W] where there are pictures, and negative_prompt_ids with its mask where something is drawn. Raises
        UserError for messages that cannot be read so.
        """
        settings = {"generation_mode": generation_mode, "negative_prompt": negative_prompt}
        if unknown := sorted((processor_kwargs or {}).keys() - settings.keys()):
            raise UserError(f"processor_kwargs has {unknown[0]}; it may have {' and '.join(settings)}")
        tensors = tokenize and return_dict and padding and return_tensors == "pt"
        if chat_template is not None or not tensors:
            raise UserError(
                "apply_chat_template gives tensors in the form that the model was trained with: tokenize, return_dict "
                "and padding are True, return_tensors is 'pt', and chat_template is the tokenizer's"
            )
        if continue_final_message:
            raise UserError("an answer cannot be continued; let the last message be the user's")
        chats: Sequence[Any] = [conversation] if isinstance(conversation[0], Mapping) else conversation
        read = [read_messages(messages) for messages in chats]
        return self._features(read, return_assistant_tokens_mask, **{**settings, **(processor_kwargs or {})})

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: None = None,
        *,
        generation_mode: str | None = None,
        negative_prompt: str = "",
        padding: bool = True,
        return_tensors: str = "pt",
        video: Any = None,
    ) -> BatchFeature:
        """Each text as one message of the user, its pictures where it says <image> and <video>, else in front of it.

        images, videos: of one text, one of them or a list; of several texts a list with an entry (one, a list or None)
        for each. A video is its frames, uint8 [F, H, W, 3] or a list of pictures, or a file. The rest as
        `apply_chat_template`; video: as pipelines of transformers 5.13 call videos.
        """
        videos = video if videos is None else videos
        if audio is not None or not padding or return_tensors != "pt":
            raise UserError(
                "the processor reads no audio, pads batches, and gives tensors (return_tensors='pt')"
            )
        if text is None:
            raise UserError("the processor needs a text; with pictures alone, say what is asked of them")
        read = [read_messages(messages) for messages in messages_of(text, images, videos)]
        return self._features(read, False, generation_mode, negative_prompt)

    def post_process_multimodal_output(
        self,
        generated_outputs: Tensor,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> list[str] | list[Image.Image] | list[list[Image.Image]] | list[list[Piece]]:
        """What `generate` gave in the same mode, as strings and PIL images, one entry a sequence.

            text          str, without white space around it; prompts are in it where generated_outputs holds them
            image         a PIL image          video   a list of them, one a frame
            interleaved   a list of str, PIL images and (for a video) lists of these

        decode: `model.decode_image_tokens`, which makes pixels of visual ids. generated_outputs may be such pixels
        already, float [N, 3, H, W] or [N, F, 3, H, W] (pipelines decode first). kwargs: the text tokenizer's decode's.
        """
        mode = generation_mode or "text"
        tokens.check_mode(mode)
        if mode == "text":
            return [self._words(row, skip_special_tokens, **kwargs) for row in generated_outputs.tolist()]
        if not generated_outputs.is_floating_point():
            if decode is None:
                raise UserError(
                    "visual ids become pictures by the model: give decode=model.decode_image_tokens"
                )
            if mode == "interleaved":
                rows = generated_outputs.tolist()
                return [self._pieces(row, decode, skip_special_tokens, **kwargs) for row in rows]
            generated_outputs = decode(generated_outputs)
        if mode == "image":
            return _pil(generated_outputs)
        frames = generated_outputs if generated_outputs.ndim == 5 else generated_outputs.unsqueeze(1)
        return [_pil(film) for film in frames]

    # --- prompts ------------------------------------------------------------------------------------------------

    def _features(
        self,
        read: Sequence[Conversation],
        assistant_masks: bool,
        generation_mode: str | None,
        negative_prompt: str,
    ) -> BatchFeature:
        if generation_mode is not None:
            tokens.check_mode(generation_mode)
        vocabulary = self.vocabulary
        positions = self.grid[0] * self.grid[1]
        prompts = Prompts(self.conversation, self.tokenizer, vocabulary, positions, self.video_frames)
        documents = [prompts.write(one, generation_mode or "text") for one in read]
        data = _padded("", [tokens.prompt_ids(document, vocabulary) for document in documents], vocabulary)
        if assistant_masks:
            marked = [tokens.supervised_places(document) for document in documents]
            data["assistant_masks"] = tokens.left_padded(marked, 0)
        if pictures := [picture for one in read for picture in pictures_of(one, self.video_frames)]:
            data["pixel_values"] = self.image_processor(pictures)["pixel_values"]
        draws = generation_mode not in (None, "text")
        if generation_mode is None and all(one.draws for one in read):
            drawings = [prompts.write(one, "image") for one in read]
            ids = [tokens.prompt_ids(document, vocabulary) for document in drawings]
            data |= _padded("image_prompt_", ids, vocabulary)
            draws = True
        if draws:
            blank = prompts.negative(negative_prompt, generation_mode)
            ids = [tokens.prompt_ids(blank, vocabulary)] * len(read)
            data |= _padded("negative_prompt_", ids, vocabulary)
        return BatchFeature(data)

    # --- what was generated -------------------------------------------------------------------------------------

    def _words(self, ids: Sequence[int], skip_special_tokens: bool, **kwargs: Any) -> str:
        text_size = self.vocabulary.text_size
        known = [id_ for id_ in ids if id_ < text_size]
        words: str = self.tokenizer.decode(known, skip_special_tokens=skip_special_tokens, **kwargs)
        return words.strip()

    def _pieces(
        self, ids: Sequence[int], decode: Callable[[Tensor], Tensor], skip_special_tokens: bool, **kwargs: Any
    ) -> list[Piece]:
        pieces: list[Piece] = []
        for visual, run in tokens.runs(ids, self.vocabulary.text_size):
            if not visual:
                if words := self._words(run, skip_special_tokens, **kwargs):
                    pieces.append(words)
                continue
            pixels = decode(torch.tensor([run]))
            pieces.append(_pil(pixels)[0] if pixels.ndim == 4 else _pil(pixels[0]))
        return pieces


def _padded(name: str, rows: Sequence[Sequence[int]], vocabulary: Vocabulary) -> dict[str, Tensor]:
    """A batch of prompts, and which of its places are no padding."""
    ids = "ids" if name else "input_ids"
    return {
        f"{name}{ids}": tokens.left_padded(rows, vocabulary.pad),
        f"{name}attention_mask": tokens.left_padded([[1] * len(row) for row in rows], 0),
    }


def _pil(pixels: Tensor) -> list[Image.Image]:
    """float [N, 3, H, W] in [-1, 1] -> N pictures."""
    return [Image.fromarray(picture) for picture in to_array(pixels)]
