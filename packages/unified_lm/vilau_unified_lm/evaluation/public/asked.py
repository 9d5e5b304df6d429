"""A trained model as an evaluation asks it: any number of pictures and a text in; an answer, or how likely one is, out.

A unified LM reads a picture as codes, a VILA as features; what follows from that is all that their classes hold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vilau_common.data.conversation import ASSISTANT, IMAGE, USER, Turn, split_at_placeholders
from vilau_common.data.encoder import BadSample
from vilau_common.errors import UserError
from vilau_common.pictures import Picture
from vilau_unified_lm.document import Codes, Document, DocumentBuilder, TextSegment
from vilau_unified_lm.generation.engine import GREEDY
from vilau_unified_lm.packing import IGNORE, MixedSequence, pack
from vilau_unified_lm.session import Session
from vilau_unified_lm.vila.data import NUMBER_DEPTH, PictureBatch, picture_places, stacked
from vilau_unified_lm.vila.model import is_vila
from vilau_unified_lm.vila.session import VilaSession


@dataclass(frozen=True, eq=False)
class Prompt:
    """pictures: uint8 [S, S, 3] each, S the model's `image_size`; they stand where the text says <image>, or before it
    where it says so nowhere."""

    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Likelihood:
    """Of an answer, with the token that closes it."""

    losses: Tensor  # float32 [t], the cross-entropy of each of its tokens
    greedy: bool  # each of them is the likeliest


class Asked(ABC):
    """A model, its text tokenizer, and how documents are written for it."""

    def __init__(self, builder: DocumentBuilder, context: int, image_size: int, device: torch.device) -> None:
        self.builder, self.context, self.image_size, self.device = builder, context, image_size, device

    def answer(self, prompts: Sequence[Prompt], max_tokens: int) -> list[str]:
        """The likeliest answer to each prompt, token by token, at most so many.

        Raises UserError for a prompt that does not fit, before anything is computed.
        """
        return self._write(self._documents(prompts), prompts, max_tokens)

    @torch.inference_mode()
    def likelihoods(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Likelihood]:
        """How likely each answer is after the prompt beside it."""
        documents = self._documents(prompts, answers)
        longest = max(len(document) for document in documents)
        if longest > self.context:
            raise UserError(
                f"a prompt and its answer have {longest} positions, but the model's context holds {self.context}; "
                "shorten the prompt"
            )
        sequence = pack([[document] for document in documents], longest, self._depth()).to(self.device)
        has_target = sequence.text_targets != IGNORE
        targets, logits = sequence.text_targets[has_target], self._logits(sequence, prompts).float()
        counts = has_target.sum(dim=1).tolist()
        losses = F.cross_entropy(logits, targets, reduction="none").cpu().split(counts)
        greedy = (logits.argmax(dim=-1) == targets).cpu().split(counts)
        return [Likelihood(loss, bool(own.all())) for loss, own in zip(losses, greedy, strict=True)]

    @torch.inference_mode()
    def text_losses(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """The cross-entropy of each id of texts without pictures, after the token that begins one: float32 [t] each."""
        begin = TextSegment((self.builder.vocabulary.begin,), supervised=False)
        documents = [Document((begin, TextSegment(tuple(ids), supervised=True))) for ids in texts]
        longest = max(len(document) for document in documents)
        sequence = pack([[document] for document in documents], longest, self._depth()).to(self.device)
        return list(self._losses(sequence).cpu().split([len(ids) for ids in texts]))

    def _documents(self, prompts: Sequence[Prompt], answers: Sequence[str] | None = None) -> list[Document]:
        documents = []
        for number, (prompt, images) in enumerate(zip(prompts, self._images(prompts), strict=True)):
            turns = [Turn(USER, _placed(prompt))]
            if answers is not None:
                turns.append(Turn(ASSISTANT, answers[number]))
            try:
                documents.append(self.builder.conversation(turns, images))
            except BadSample as error:
                raise UserError(f"the prompt {prompt.text!r} cannot be asked: {error}") from None
        return documents

    @abstractmethod
    def _images(self, prompts: Sequence[Prompt]) -> list[list[Codes]]:
        """What stands in a document for each picture of each prompt."""

    @abstractmethod
    def _depth(self) -> int:
        """D of these."""

    @abstractmethod
    def _write(self, documents: Sequence[Document], prompts: Sequence[Prompt], max_tokens: int) -> list[str]:
        """What follows each document, greedily."""

    @abstractmethod
    def _logits(self, sequence: MixedSequence, prompts: Sequence[Prompt]) -> Tensor:
        """float [T, V], of the sequence's text targets."""

    @abstractmethod
    def _losses(self, sequence: MixedSequence) -> Tensor:
        """float32 [T], of the text targets of a sequence without pictures."""


class AskedUnifiedLM(Asked):
    def __init__(self, session: Session) -> None:
        model = session.model
        context = int(model.config.backbone_config.max_position_embeddings)
        super().__init__(session.builder, context, session.image_tokenizer.image_size, model.device)
        self.session = session

    def _images(self, prompts: Sequence[Prompt]) -> list[list[Codes]]:
        # Several questions about one picture share its array: it is encoded once.
        shown = {id(picture): picture for prompt in prompts for picture in prompt.pictures}
        codes = self.session.encode(np.stack(list(shown.values()))) if shown else ()
        of = dict(zip(shown, codes, strict=True))
        return [[of[id(picture)] for picture in prompt.pictures] for prompt in prompts]

    def _depth(self) -> int:
        return self.session.image_tokenizer.depth

    def _write(self, documents: Sequence[Document], prompts: Sequence[Prompt], max_tokens: int) -> list[str]:
        end, seeds = self.builder.chat.end, [0] * len(documents)
        rows = self.session.engine.write(documents, end, max_tokens, GREEDY, seeds)
        return [self.session.text(row) for row in rows]

    def _logits(self, sequence: MixedSequence, prompts: Sequence[Prompt]) -> Tensor:
        return self.session.model.logits(sequence).text

    def _losses(self, sequence: MixedSequence) -> Tensor:
        return self.session.model(sequence).text


class AskedVila(Asked):
    def __init__(self, session: VilaSession) -> None:
        model = session.model
        context = int(model.config.backbone_config.max_position_embeddings)
        super().__init__(session.builder, context, model.image_size, model.device)
        self.session = session

    def _images(self, prompts: Sequence[Prompt]) -> list[list[Codes]]:
        places = self.session.model.places
        return [
            [picture_places(number, places) for number in range(len(prompt.pictures))] for prompt in prompts
        ]

    def _depth(self) -> int:
        return NUMBER_DEPTH

    def _write(self, documents: Sequence[Document], prompts: Sequence[Prompt], max_tokens: int) -> list[str]:
        return self.session.write(documents, _shown(prompts), max_tokens)

    def _logits(self, sequence: MixedSequence, prompts: Sequence[Prompt]) -> Tensor:
        return self.session.model.logits(self._batch(sequence, _shown(prompts)))

    def _losses(self, sequence: MixedSequence) -> Tensor:
        return self.session.model(self._batch(sequence, [])).text

    def _batch(self, sequence: MixedSequence, pictures: Sequence[Picture]) -> PictureBatch:
        return PictureBatch(sequence, stacked(pictures, self.image_size).to(self.device))


def open_asked(run: Path, device: str | None = None, compile: str = "none") -> Asked:
    """The model of a run: a whole line's, an LM's own, or of `train-vila`.

    device: None takes a GPU where there is one. compile: as the engine's; it speeds up a unified LM. Raises UserError
    where there is no model, or no such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not is_vila(run):
        return AskedUnifiedLM(Session.open(run, device=device, compile=compile))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device is {device}, but torch finds no GPU here; use device=cpu")
    session = VilaSession.open(run)
    session.model.to(torch.device(device))
    return AskedVila(session)


def model_directory(run: Path) -> Path:
    """Where the weights are that `open_asked` reads."""
    found = run / "lm" if (run / "lm").is_dir() else run
    return found / "model" if (found / "model").is_dir() else found


def _placed(prompt: Prompt) -> str:
    """The text, with an <image> for every picture."""
    if IMAGE in split_at_placeholders(prompt.text):
        return prompt.text
    return IMAGE * len(prompt.pictures) + prompt.text


def _shown(prompts: Sequence[Prompt]) -> list[Picture]:
    return [picture for prompt in prompts for picture in prompt.pictures]
