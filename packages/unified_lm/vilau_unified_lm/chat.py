"""How a conversation is written for the language model: in the plain form, or by the tokenizer's chat template.

    plain       <s> (question \\n answer </s>)+
    template    whatever the template says, such as <|im_start|>user\\nquestion<|im_end|>\\n<|im_start|>assistant\\n…

Supervised are the answers, with the token that ends each. <image> and <video> in a turn become places that the
document fills with codes; in an answer those are supervised, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from vilau_common.data.conversation import (
    ASSISTANT,
    IMAGE,
    PLACEHOLDERS,
    USER,
    VIDEO,
    Turn,
    split_at_placeholders,
)
from vilau_common.errors import UserError
from vilau_unified_lm.segments import TextSegment
from vilau_unified_lm.vocabulary import IMAGE_END, IMAGE_START, VIDEO_END, VIDEO_START, Vocabulary

# Separates what the user says from what the model answers.
TURN = "\n"

_MARKS = {IMAGE: IMAGE_START + IMAGE_END, VIDEO: VIDEO_START + VIDEO_END}


@dataclass(frozen=True)
class Place:
    """Where an image or video stands."""

    kind: str  # IMAGE or VIDEO
    supervised: bool


Part = TextSegment | Place


class Chat(ABC):
    """Turns -> segments. `opening`: the ids before a picture that begins a conversation; `end`: what ends an answer.

    `marked`: whether <image_start> and its like stand around pictures; `between`: the ids between frames of a video.
    """

    opening: tuple[int, ...]
    end: int
    marked: bool = True
    between: tuple[int, ...] = ()

    @abstractmethod
    def conversation(self, turns: Sequence[Turn]) -> list[Part]:
        """A conversation; where the last turn is the user's, the prompt of the answer to it."""

    @abstractmethod
    def about_picture(self, turns: Sequence[tuple[str, str | None]], branch: int = 0) -> list[TextSegment]:
        """What follows `opening` and a picture: (question, answer) turns; the last answer may be None, to come."""


class PlainChat(Chat):
    """The plain form. ids: text -> ids without special tokens."""

    def __init__(self, ids: Callable[[str], tuple[int, ...]], vocabulary: Vocabulary) -> None:
        self.ids = ids
        self.opening = (vocabulary.begin,)
        self.end = vocabulary.end

    def conversation(self, turns: Sequence[Turn]) -> list[Part]:
        parts: list[Part] = [TextSegment(self.opening, supervised=False)]
        for turn in turns:
            answer = turn.role == ASSISTANT
            said = split_at_placeholders(turn.text.strip())
            if not said or said[-1] in PLACEHOLDERS:
                said.append("")
            *before, last = said
            for part in before:
                if part in PLACEHOLDERS:
                    parts.append(Place(part, answer))
                else:
                    parts.append(TextSegment(self.ids(part), answer))
            closed = (*self.ids(last), self.end) if answer else self.ids(last + TURN)
            parts.append(TextSegment(closed, answer))
        return parts

    def about_picture(self, turns: Sequence[tuple[str, str | None]], branch: int = 0) -> list[TextSegment]:
        segments = []
        for question, answer in turns:
            segments.append(TextSegment(self.ids(question + TURN), supervised=False, branch=branch))
            if answer is not None:
                answered = (*self.ids(answer), self.end)
                segments.append(TextSegment(answered, supervised=True, branch=branch))
        return segments


class TemplateChat(Chat):
    """The tokenizer's chat template.

    The conversation is rendered and tokenized as a whole. An answer is supervised from where its prompt (the turns
    before it, rendered for generation) ends to the special token that ends its turn. Raises UserError where the
    template does not let that be found.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"the text tokenizer ({type(tokenizer).__name__}) has a chat template, but does not tell which "
                "token is of which character; give a fast tokenizer (tokenizer.json)"
            )
        self.tokenizer = tokenizer
        self._places = {
            (vocabulary.image_start, vocabulary.image_end): IMAGE,
            (vocabulary.video_start, vocabulary.video_end): VIDEO,
        }
        self._marks = frozenset(vocabulary.special_ids)
        added = tokenizer.added_tokens_decoder
        self._special = {id_ for id_, token in added.items() if token.special} | set(
            tokenizer.all_special_ids
        )
        # Told apart here, before any compute is spent: whether answers can be found, in the middle and at the end.
        turns = [Turn(USER, f"{IMAGE}one"), Turn(ASSISTANT, "two"), Turn(USER, "one"), Turn(ASSISTANT, "two")]
        parts = self.conversation(turns)
        ends = {part.ids[-1] for part in parts if isinstance(part, TextSegment) and part.supervised}
        if len(ends) != 1:
            raise UserError(f"{_UNUSABLE}: its answers end with different tokens")
        (self.end,) = ends
        self.opening = _before_picture(parts)

    def conversation(self, turns: Sequence[Turn]) -> list[Part]:
        messages = [{"role": turn.role, "content": _marked(turn.text)} for turn in turns]
        whole = self._rendered(messages, to_come=turns[-1].role != ASSISTANT)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] == ASSISTANT:
                prompt = self._rendered(messages[:index], to_come=True)
                found = whole.find(message["content"], len(prompt)) if whole.startswith(prompt) else -1
                if found < 0:
                    raise UserError(f"{_UNUSABLE}: an answer is not where its prompt ends")
                spans.append((len(prompt), found + len(message["content"])))
        parts = self._parts(whole, spans)
        said = [part for turn in turns for part in split_at_placeholders(turn.text) if part in PLACEHOLDERS]
        if [part.kind for part in parts if isinstance(part, Place)] != said:
            raise UserError(_MARKS_IN_TEXT)
        return parts

    def about_picture(self, turns: Sequence[tuple[str, str | None]], branch: int = 0) -> list[TextSegment]:
        said: list[Turn] = []
        for question, answer in turns:
            said.append(Turn(USER, question if said else IMAGE + question))
            if answer is not None:
                said.append(Turn(ASSISTANT, answer))
        parts = self.conversation(said)
        if _before_picture(parts) != self.opening:
            raise UserError(f"{_UNUSABLE}: what stands before a picture depends on what follows it")
        after = parts[2 if self.opening else 1 :]
        segments = [TextSegment(p.ids, p.supervised, branch) for p in after if isinstance(p, TextSegment)]
        if len(segments) != len(after):
            raise UserError("a question about a picture holds another <image> or <video>")
        return segments

    def _rendered(self, messages: Sequence[dict[str, str]], to_come: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=to_come
            )
        except TemplateError as error:
            raise UserError(f"the chat template refuses a conversation: {error}") from error
        return text

    def _parts(self, whole: str, answers: Sequence[tuple[int, int]]) -> list[Part]:
        """The rendered text as segments; answers: the characters from the prompt's end to the answer's."""
        encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        supervised = [False] * len(ids)
        ends = [end for _, end in offsets]
        for start, end in answers:
            token = bisect_right(ends, start)
            while token < len(ids) and (offsets[token][0] < end or ids[token] not in self._special):
                supervised[token] = True
                token += 1
            if token == len(ids):
                raise UserError(f"{_UNUSABLE}: no special token ends an answer")
            supervised[token] = True
        parts: list[Part] = []
        run: list[int] = []  # the ids of the segment that is not yet closed
        index = 0
        while index < len(ids):
            kind = self._places.get(tuple(ids[index : index + 2]))
            if kind is None:
                if ids[index] in self._marks:
                    raise UserError(_MARKS_IN_TEXT)
                run.append(ids[index])
            changes = index + 1 == len(ids) or supervised[index + 1] != supervised[index]
            if run and (kind is not None or changes):
                parts.append(TextSegment(tuple(run), supervised[index]))
                run = []
            if kind is not None:
                parts.append(Place(kind, supervised[index]))
            index += 1 if kind is None else 2
        return parts


_UNUSABLE = (
    "the text tokenizer's chat template cannot be trained on (give another one, or none: then conversations are "
    "written in the plain form)"
)


_MARKS_IN_TEXT = "a conversation holds the tokens that stand around pictures, or its template loses some"


def _marked(text: str) -> str:
    """The text with each placeholder as the tokens that stand around its picture."""
    return "".join(_MARKS.get(part, part) for part in split_at_placeholders(text.strip()))


def _before_picture(parts: Sequence[Part]) -> tuple[int, ...]:
    first = parts[0]
    return first.ids if isinstance(first, TextSegment) else ()
