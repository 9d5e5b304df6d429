"""The released models' prompts: a Vicuna conversation (v1), as the official VILA-U code writes it.

    question   <s> system USER: V \\n question ASSISTANT:                     V: the image's positions, no marks around
    video      <s> system USER: V \\n V \\n … question ASSISTANT:             a V for each frame
    drawing    <s> system USER: caption ASSISTANT: <im_start>
    blank      <s> system USER:ASSISTANT: <im_start>                        the unconditional prompt of guidance
    answers    … ASSISTANT: answer </s>USER: question ASSISTANT: answer </s>

The text before an image and the text behind it are tokenized apart, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from vilau_common.data.conversation import ASSISTANT, PLACEHOLDERS, Turn, split_at_placeholders
from vilau_unified_lm.chat import Chat, Part, Place
from vilau_unified_lm.document import Document, DocumentBuilder, TextSegment
from vilau_unified_lm.vocabulary import Vocabulary

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
ASKS, ANSWERS = "USER:", "ASSISTANT:"
AFTER_PICTURE = "\n"


class VicunaChat(Chat):
    """Conversations as above. ids: text -> ids without special tokens; closed: the text of the token </s>."""

    marked = False

    def __init__(self, ids: Callable[[str], tuple[int, ...]], vocabulary: Vocabulary, closed: str) -> None:
        self.ids = ids
        self.closed = closed
        self.begin = (vocabulary.begin,)
        self.opening = (*self.begin, *ids(f"{SYSTEM} {ASKS} "))
        self.end = vocabulary.end
        self.between = ids(AFTER_PICTURE)

    def conversation(self, turns: Sequence[Turn]) -> list[Part]:
        parts: list[Part] = []
        text = f"{SYSTEM} "  # not yet written
        for turn in turns:
            if turn.role == ASSISTANT:
                parts += [self._asked(parts, text), self._answered(turn.text)]
                text = self.closed
                continue
            text += f"{ASKS} "
            for part in split_at_placeholders(turn.text.strip()):
                if part in PLACEHOLDERS:
                    parts += [self._asked(parts, text), Place(part, supervised=False)]
                    text = AFTER_PICTURE
                else:
                    text += part.lstrip() if text == AFTER_PICTURE else part
            text = f"{text.rstrip(' ')} {ANSWERS}"
        if turns[-1].role != ASSISTANT:
            parts.append(self._asked(parts, text))
        return parts

    def about_picture(self, turns: Sequence[tuple[str, str | None]], branch: int = 0) -> list[TextSegment]:
        segments = []
        for number, (question, answer) in enumerate(turns):
            if number:
                asked = self._after_end(f"{self.closed}{ASKS} {question} {ANSWERS}")
            else:
                asked = self.ids(f"{AFTER_PICTURE}{question}".rstrip() + f" {ANSWERS}")
            segments.append(TextSegment(asked, supervised=False, branch=branch))
            if answer is not None:
                segments.append(self._answered(answer, branch))
        return segments

    def _asked(self, before: Sequence[Part], text: str) -> TextSegment:
        """The text as it stands behind these parts."""
        if not before:
            return TextSegment((*self.begin, *self.ids(text)), supervised=False)
        ids = self._after_end(text) if text.startswith(self.closed) else self.ids(text)
        return TextSegment(ids, supervised=False)

    def _answered(self, answer: str, branch: int = 0) -> TextSegment:
        return TextSegment((*self.ids(f" {answer}"), self.end), supervised=True, branch=branch)

    def _after_end(self, text: str) -> tuple[int, ...]:
        """The ids of a text that begins with </s>, which the answer before it has written."""
        return self.ids(text)[1:]


class VicunaBuilder(DocumentBuilder):
    """Writes prompts and answers as above; documents with a drawing are such a prompt, the image and its end."""

    def _chat(self) -> Chat:
        return VicunaChat(self.ids, self.vocabulary, str(self.tokenizer.eos_token))

    def drawing_prompt(self, caption: str) -> Document:
        return self._generation_prompt(caption, self.vocabulary.image_start)

    def filming_prompt(self, caption: str) -> Document:
        return self._generation_prompt(caption, self.vocabulary.video_start)

    def _generation_prompt(self, caption: str, start: int) -> Document:
        said = f" {caption.strip()} " if caption.strip() else ""
        ids = self.ids(f"{SYSTEM} {ASKS}{said}{ANSWERS} ")
        return Document((TextSegment((self.vocabulary.begin, *ids, start), supervised=False),))


def builder_of(
    conversation: str, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary
) -> DocumentBuilder:
    """The builder that writes prompts in the form that a model's configuration names, one of `CONVERSATIONS`."""
    builders = {"plain": DocumentBuilder, "vicuna_v1": VicunaBuilder}
    return builders[conversation](tokenizer, vocabulary)
