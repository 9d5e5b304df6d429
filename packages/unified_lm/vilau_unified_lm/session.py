"""A trained unified LM in use: strings and pictures in, strings and pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vilau_common.images import Picture, open_image, to_array, to_tensor
from vilau_unified_lm.convert.layout import is_official
from vilau_unified_lm.document import Document, DocumentBuilder
from vilau_unified_lm.generation.engine import GREEDY, Engine
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.model import UnifiedLM, load_unified_lm, model_directory
from vilau_unified_lm.vicuna import VicunaBuilder
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.clip import load_text_tokenizer


class Session:
    """Model, text tokenizer and engine together."""

    def __init__(self, model: UnifiedLM, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.text_tokenizer = tokenizer
        self.image_tokenizer = model.image_tokenizer
        books = self.image_tokenizer
        vocabulary = Vocabulary.from_tokenizer(tokenizer, books.codebook_size, books.depth)
        builders = {"plain": DocumentBuilder, "vicuna_v1": VicunaBuilder}
        self.builder = builders[model.config.conversation](tokenizer, vocabulary)
        self.engine = Engine(model)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        dtype: torch.dtype | str = "auto",
        device_map: str | dict[str, Any] | None = None,
    ) -> Session:
        """From a run directory (of an LM or a whole line), its model/, or a checkpoint of the official code.

        dtype: 'auto' takes the stored one; device_map: as `from_pretrained` takes it. Raises UserError where there is
        no such model.
        """
        if is_official(directory):
            from vilau_unified_lm.convert.read import load_official

            return cls(*load_official(directory, dtype=dtype, device_map=device_map))
        path = model_directory(directory)
        return cls(load_unified_lm(path, dtype, device_map), load_text_tokenizer(path))

    def open_image(self, path: Path) -> Picture:
        """A picture file as uint8 [H, W, 3] of the model's size, made square as it was trained."""
        return open_image(path, self.image_tokenizer.image_size, self.model.config.image_fit)

    def encode(self, pictures: Picture) -> npt.NDArray[np.int64]:
        """uint8 [B, H, W, 3] -> codes int64 [B, h, w, D]."""
        codes: npt.NDArray[np.int64] = self.image_tokenizer.encode(self._images(pictures)).cpu().numpy()
        return codes

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
        prompt = self.builder.video_question_prompt(list(self.encode(pictures[chosen])), question)
        return self._written([prompt], max_tokens)[0]

    def draw(self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> Picture:
        """uint8 [B, H, W, 3], one picture a prompt, each with its own seed."""
        documents = [self.builder.drawing_prompt(prompt) for prompt in prompts]
        codes = self.engine.draw(documents, self.builder.drawing_prompt(""), sampling, seeds)
        return to_array(self.image_tokenizer.decode(codes))

    def film(self, prompts: Sequence[str], frames: int, sampling: Sampling, seeds: Sequence[int]) -> Picture:
        """uint8 [B, frames, H, W, 3], one video a prompt, each with its own seed."""
        documents = [self.builder.filming_prompt(prompt) for prompt in prompts]
        codes = self.engine.film(documents, self.builder.filming_prompt(""), frames, sampling, seeds)
        pictures = to_array(self.image_tokenizer.decode(codes.flatten(0, 1)))
        return pictures.reshape(len(prompts), frames, *pictures.shape[1:])

    def _images(self, pictures: Picture) -> Tensor:
        return to_tensor(pictures).to(self.model.device)

    def _written(self, prompts: Sequence[Document], max_tokens: int) -> list[str]:
        """Answers of at most `max_tokens`, and of no more than the model's context has room for."""
        end = self.builder.vocabulary.end
        context = int(self.model.config.backbone_config.max_position_embeddings)
        max_tokens = max(1, min(max_tokens, context - max(len(prompt) for prompt in prompts)))
        rows = self.engine.write(prompts, end, max_tokens, GREEDY, [0] * len(prompts))
        return [self.text_tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
