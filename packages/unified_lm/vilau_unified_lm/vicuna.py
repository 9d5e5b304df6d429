"""The released models' prompts: a Vicuna conversation (v1), as the official VILA-U code writes it.

    question   <s> system USER: V \\n question ASSISTANT:                     V: the image's positions, no marks around
    video      <s> system USER: V \\n V \\n … question ASSISTANT:             a V for each frame
    drawing    <s> system USER: caption ASSISTANT: <im_start>
    blank      <s> system USER:ASSISTANT: <im_start>                        the unconditional prompt of guidance
    answers    … ASSISTANT: answer </s> USER: question ASSISTANT: answer </s>

The text before an image and the text behind it are tokenized apart, as there.
"""

from __future__ import annotations

from collections.abc import Sequence

from vilau_unified_lm.document import Codes, Document, DocumentBuilder, Segment, TextSegment, image

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
USER, ASSISTANT = "USER:", "ASSISTANT:"
BEFORE_IMAGE = f"{SYSTEM} {USER} "


class VicunaBuilder(DocumentBuilder):
    """Writes prompts and answers as above; documents with a drawing are such a prompt, the image and its end."""

    def drawing_prompt(self, caption: str) -> Document:
        return self._generation_prompt(caption, self.vocabulary.image_start)

    def filming_prompt(self, caption: str) -> Document:
        return self._generation_prompt(caption, self.vocabulary.video_start)

    def question_prompt(self, codes: Codes, question: str) -> Document:
        return self.video_question_prompt([codes], question)

    def video_question_prompt(self, frames: Sequence[Codes], question: str) -> Document:
        return Document((*self._pictures(frames), self._text(f"\n{question}".rstrip() + f" {ASSISTANT}")))

    def questions(self, codes: Codes, turns: Sequence[tuple[str, str]], independent: bool) -> Document:
        segments: list[Segment] = [*self._pictures([codes])]
        for number, (question, answer) in enumerate(turns):
            branch = number + 1 if independent else 0
            if number == 0 or independent:
                asked = self.ids(f"\n{question} {ASSISTANT}")
            else:
                asked = self._ids_after_end(f"{USER} {question} {ASSISTANT}")
            segments.append(TextSegment(asked, supervised=False, branch=branch))
            answered = (*self.ids(f" {answer}"), self.vocabulary.end)
            segments.append(TextSegment(answered, supervised=True, branch=branch))
        return Document(tuple(segments))

    def _generation_prompt(self, caption: str, start: int) -> Document:
        said = f" {caption.strip()} " if caption.strip() else ""
        ids = self.ids(f"{SYSTEM} {USER}{said}{ASSISTANT} ")
        return Document((TextSegment((self.vocabulary.begin, *ids, start), supervised=False),))

    def _pictures(self, frames: Sequence[Codes]) -> list[Segment]:
        """The conversation up to and with its images."""
        segments: list[Segment] = []
        for frame in frames:
            before = self.ids("\n") if segments else (self.vocabulary.begin, *self.ids(BEFORE_IMAGE))
            segments += [TextSegment(before, supervised=False), image(frame, supervised=False)]
        return segments

    def _text(self, text: str) -> TextSegment:
        return TextSegment(self.ids(text), supervised=False)

    def _ids_after_end(self, text: str) -> tuple[int, ...]:
        """The ids of a text that follows </s> without a space."""
        return self.ids(f"{self.tokenizer.eos_token}{text}")[1:]
