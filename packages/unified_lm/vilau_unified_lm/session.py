"""A trained unified LM in use: strings and pictures in, strings and pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vilau_common.errors import UserError
from vilau_common.images import Picture, to_array, to_tensor
from vilau_unified_lm.document import DocumentBuilder
from vilau_unified_lm.generation.engine import GREEDY, Engine
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.model import UnifiedLM, load_unified_lm
from vilau_unified_lm.vila.model import is_vila
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.clip import load_text_tokenizer


class Session:
    """Model, text tokenizer and engine together."""

    def __init__(self, model: UnifiedLM, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.text_tokenizer = tokenizer
        self.image_tokenizer = model.image_tokenizer
        books = self.image_tokenizer
        self.builder = DocumentBuilder(
            tokenizer, Vocabulary.from_tokenizer(tokenizer, books.codebook_size, books.depth)
        )
        self.engine = Engine(model)

    @classmethod
    def open(cls, directory: Path) -> Session:
        """From an LM's run directory (or its model/). Raises UserError where there is none, or a VILA."""
        path = directory / "model" if (directory / "model").is_dir() else directory
        if is_vila(path):
            raise UserError(
                f"{directory} holds a VILA, which answers questions about pictures but has no codes to draw with"
            )
        return cls(load_unified_lm(path), load_text_tokenizer(path))

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
        end = self.builder.chat.end
        rows = self.engine.write(prompts, end, max_tokens, GREEDY, [0] * len(prompts))
        return [self.text_tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

    def draw(self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> Picture:
        """uint8 [B, H, W, 3], one picture a prompt, each with its own seed."""
        documents = [self.builder.drawing_prompt(prompt) for prompt in prompts]
        codes = self.engine.draw(documents, self.builder.drawing_prompt(""), sampling, seeds)
        return to_array(self.image_tokenizer.decode(codes))

    def _images(self, pictures: Picture) -> Tensor:
        return to_tensor(pictures).to(self.model.device)
