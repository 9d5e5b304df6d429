"""Documents: what one training sample or prompt says, as segments of text ids and image codes.

    text -> image   <s> caption <image_start> V <image_end> </s>               loss on V and what follows
    image -> text   <s> <image_start> V <image_end> instruction \\n caption </s>   loss on the caption and </s>
    questions       <s> <image_start> V <image_end> (question \\n answer </s>)+     loss on answers and </s>
    text            <s> text </s>                                               loss on all of it

V is an image's h*w visual positions in row-major order. A blank prompt (for guidance) is an empty caption.

Questions are the turns of one conversation, or independent: then each is a branch of the document, which sees the
picture and itself and stands where it would stand alone. One picture serves them all, at the cost of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from vilau_unified_lm.vocabulary import Vocabulary

# Separates what the user says from what the model answers.
TURN = "\n"
DESCRIBE = "describe the picture."
# Some 30 MB at most; in a data set of millions the first ones stay, which costs nothing.
REMEMBERED_TEXTS = 100_000

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TextSegment:
    ids: tuple[int, ...]
    supervised: bool
    branch: int = 0  # 0: the trunk, which all that follows sees; others: seen by their own branch alone


@dataclass(frozen=True, eq=False)
class ImageSegment:
    codes: Codes  # int64 [T, D], row-major over the grid
    supervised: bool
    branch: int = 0


Segment = TextSegment | ImageSegment


@dataclass(frozen=True, eq=False)
class Document:
    segments: tuple[Segment, ...]  # the trunk's, then each branch's

    def __len__(self) -> int:
        """Positions in the mixed sequence."""
        return sum(len(s.ids) if isinstance(s, TextSegment) else len(s.codes) for s in self.segments)


class DocumentBuilder:
    """Writes documents with one tokenizer and vocabulary. Codes come as int64 [h, w, D] or [T, D]."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self._known: dict[str, tuple[int, ...]] = {"": ()}

    def ids(self, text: str) -> tuple[int, ...]:
        """Text -> ids without special tokens. Texts come again (questions, epochs) and tokenizers are slow to call."""
        ids = self._known.get(text)
        if ids is None:
            ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if len(self._known) < REMEMBERED_TEXTS:
                self._known[text] = ids
        return ids

    def text_to_image(self, caption: str, codes: Codes) -> Document:
        """A caption and its picture; an empty caption is the blank prompt of guidance."""
        closing = TextSegment((self.vocabulary.image_end, self.vocabulary.end), supervised=True)
        return Document((*self.drawing_prompt(caption).segments, image(codes, supervised=True), closing))

    def image_to_text(self, codes: Codes, caption: str) -> Document:
        """A picture and its caption, as the answer to the standing instruction."""
        return self.questions(codes, [(DESCRIBE, caption)], independent=False)

    def questions(self, codes: Codes, turns: Sequence[tuple[str, str]], independent: bool) -> Document:
        """A picture and one or more (question, answer) turns about it.

        independent: the turns are branches that do not see each other, not one conversation.
        """
        segments: list[Segment] = [*self._picture(codes)]
        for number, (question, answer) in enumerate(turns, start=1):
            branch = number if independent else 0
            segments.append(TextSegment(self.ids(question + TURN), supervised=False, branch=branch))
            answered = (*self.ids(answer), self.vocabulary.end)
            segments.append(TextSegment(answered, supervised=True, branch=branch))
        return Document(tuple(segments))

    def text(self, text: str) -> Document:
        """Text alone."""
        begin = TextSegment((self.vocabulary.begin,), supervised=False)
        return Document((begin, TextSegment((*self.ids(text), self.vocabulary.end), supervised=True)))

    def drawing_prompt(self, caption: str) -> Document:
        """What stands before the first visual position of a drawing."""
        ids = (self.vocabulary.begin, *self.ids(caption), self.vocabulary.image_start)
        return Document((TextSegment(ids, supervised=False),))

    def filming_prompt(self, caption: str) -> Document:
        """What stands before the first visual position of a video."""
        ids = (self.vocabulary.begin, *self.ids(caption), self.vocabulary.video_start)
        return Document((TextSegment(ids, supervised=False),))

    def question_prompt(self, codes: Codes, question: str) -> Document:
        """What stands before the first token of an answer."""
        asked = TextSegment(self.ids(question + TURN), supervised=False)
        return Document((*self._picture(codes), asked))

    def video_question_prompt(self, frames: Sequence[Codes], question: str) -> Document:
        """What stands before the first token of an answer about a video: the codes of each of its frames."""
        opening = TextSegment((self.vocabulary.begin, self.vocabulary.video_start), supervised=False)
        asked = TextSegment((self.vocabulary.video_end, *self.ids(question + TURN)), supervised=False)
        return Document((opening, *(image(codes, supervised=False) for codes in frames), asked))

    def _picture(self, codes: Codes) -> tuple[Segment, ...]:
        opening = TextSegment((self.vocabulary.begin, self.vocabulary.image_start), supervised=False)
        closing = TextSegment((self.vocabulary.image_end,), supervised=False)
        return (opening, image(codes, supervised=False), closing)


def image(codes: Codes, supervised: bool) -> ImageSegment:
    """codes int64 [h, w, D] or [T, D] as a segment."""
    return ImageSegment(codes.reshape(-1, codes.shape[-1]), supervised)
