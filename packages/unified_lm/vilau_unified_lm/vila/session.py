"""A trained VILA in use: pictures and questions in, answers out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from vilau_common.pictures import Picture, centre_square
from vilau_unified_lm.document import Document, DocumentBuilder
from vilau_unified_lm.generation.decoding import Decoding, dense_attention
from vilau_unified_lm.generation.engine import GREEDY
from vilau_unified_lm.generation.loop import Loop, text_ids
from vilau_unified_lm.generation.prompts import left_padded
from vilau_unified_lm.generation.request import Request
from vilau_unified_lm.generation.row import Row
from vilau_unified_lm.vila.data import (
    NUMBER_DEPTH,
    PictureBatch,
    picture_places,
    picture_vocabulary,
    stacked,
)
from vilau_unified_lm.vila.model import VilaModel, load_vila
from vilau_vision_tower.clip import load_text_tokenizer


class VilaSession:
    """Model and text tokenizer together."""

    def __init__(self, model: VilaModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.text_tokenizer = tokenizer
        self.builder = DocumentBuilder(tokenizer, picture_vocabulary(tokenizer))

    @classmethod
    def open(cls, directory: Path) -> VilaSession:
        """From a run directory of `vilau train-vila` (or its model/). Raises UserError where there is none."""
        path = directory / "model" if (directory / "model").is_dir() else directory
        return cls(load_vila(path), load_text_tokenizer(path))

    def answer(self, pictures: Sequence[Picture], questions: Sequence[str], max_tokens: int) -> list[str]:
        """The likeliest answer to each question about the picture beside it, uint8 [H, W, 3] of any size."""
        places = picture_places(0, self.model.places)
        prompts = [self.builder.question_prompt(places, question) for question in questions]
        return self.write(prompts, pictures, max_tokens)

    def write(self, prompts: Sequence[Document], pictures: Sequence[Picture], max_tokens: int) -> list[str]:
        """What follows each prompt, token by token the likeliest.

        pictures: of all prompts, in their order, uint8 [H, W, 3] of any size; they stand at `picture_places`, and a
        prompt may have any number of them.
        """
        rows = self._write(prompts, pictures, max_tokens)
        return [self.text_tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

    @torch.inference_mode()
    def _write(
        self, prompts: Sequence[Document], pictures: Sequence[Picture], max_tokens: int
    ) -> list[list[int]]:
        """Text ids after each prompt."""
        model, size = self.model, self.model.image_size
        context = int(model.config.backbone_config.max_position_embeddings)
        sequence = left_padded(prompts, NUMBER_DEPTH, context, max_tokens)
        pixels = stacked([centre_square(picture, size) for picture in pictures], size)
        batch = PictureBatch(sequence, pixels).to(model.device)
        ends = (self.builder.chat.end,)
        rows = [
            Row(index, Request(prompt=prompt, seed=0, positions=max_tokens), model.places, ends, None, None)
            for index, prompt in enumerate(prompts)
        ]
        with dense_attention(model.llm):
            state = Decoding.of(model.llm, batch.sequence, model.embed(batch), max_tokens)
            return [text_ids(written) for written in Loop(state, rows, GREEDY).run()]
