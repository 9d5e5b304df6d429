"""Documents: what one training sample or prompt says, as segments of text ids and image codes.

    text -> image   <s> caption <image_start> V <image_end> </s>               loss on V and what follows
    image -> text   <s> <image_start> V <image_end> instruction \\n caption </s>   loss on the caption and </s>
    text -> video   <s> caption <video_start> V…V <video_end> </s>             loss on V…V and what follows
    video -> text   <s> <video_start> V…V <video_end> instruction \\n caption </s> loss on the caption and </s>
    edit            <s> <image_start> V <image_end> instruction <image_start> V <image_end> </s>
                                                                               loss on the second V and what follows
    interleaved     <s> (text | <image_start> V <image_end>)+ </s>             loss on text and </s>; images as set
    questions       <s> <image_start> V <image_end> (question \\n answer </s>)+     loss on answers and </s>
    conversation    <s> (question \\n answer </s>)+, images and videos anywhere in them    loss on answers and </s>
    text            <s> text </s>                                               loss on all of it

V is an image's h*w visual positions in row-major order; a video is those of its frames. A blank prompt (for guidance)
is an empty caption.

Questions are the turns of one conversation, or independent: then each is a branch of the document, which sees the
picture and itself and stands where it would stand alone. One picture serves them all, at the cost of one.

Where the tokenizer has a chat template, everything with an answer (questions, conversations, image and video to text)
is written as the template says (`chat`); the layouts above are those without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from vilau_common.data.conversation import (
    ASSISTANT,
    IMAGE,
    PLACEHOLDERS,
    USER,
    VIDEO,
    Turn,
    check_places,
    split_at_placeholders,
)
from vilau_common.errors import UserError
from vilau_unified_lm.chat import Chat, Part, Place, PlainChat, TemplateChat
from vilau_unified_lm.segments import Codes as Codes  # with the builder, all that is needed to make documents
from vilau_unified_lm.segments import Document as Document
from vilau_unified_lm.segments import ImageSegment as ImageSegment
from vilau_unified_lm.segments import Segment as Segment
from vilau_unified_lm.segments import TextSegment as TextSegment
from vilau_unified_lm.segments import image
from vilau_unified_lm.vocabulary import Vocabulary

DESCRIBE = "describe the picture."
DESCRIBE_VIDEO = "describe the video."
# Some 30 MB at most; in a data set of millions the first ones stay, which costs nothing.
REMEMBERED_TEXTS = 100_000
# Longer ones (characters) hardly come again, and would fill the memory.
LONGEST_REMEMBERED = 300


class DocumentBuilder:
    """Writes documents with one tokenizer and vocabulary.

    Codes of an image come as int64 [h, w, D] or [T, D], of a video as one of these a frame.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
        """Raises UserError for a chat template that does not let the answers be found."""
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self._known: dict[str, tuple[int, ...]] = {"": ()}
        self._marks = frozenset(vocabulary.special_ids)
        self.chat = self._chat()

    def _chat(self) -> Chat:
        if self.tokenizer.chat_template is None:
            return PlainChat(self.ids, self.vocabulary)
        return TemplateChat(self.tokenizer, self.vocabulary)

    def ids(self, text: str) -> tuple[int, ...]:
        """Text -> ids without special tokens. Texts come again (questions, epochs) and tokenizers are slow to call.

        Raises UserError for a text that writes out <image_start> or its like, which no picture would follow.
        """
        ids = self._known.get(text)
        if ids is None:
            ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if not self._marks.isdisjoint(ids):
                raise UserError("a text holds the tokens that stand around pictures")
            if len(self._known) < REMEMBERED_TEXTS and len(text) <= LONGEST_REMEMBERED:
                self._known[text] = ids
        return ids

    # --- documents ----------------------------------------------------------------------------------------------

    def text_to_image(self, caption: str, codes: Codes) -> Document:
        """A caption and its picture; an empty caption is the blank prompt of guidance."""
        closing = TextSegment((self.vocabulary.image_end, self.vocabulary.end), supervised=True)
        return Document((*self.drawing_prompt(caption).segments, image(codes, supervised=True), closing))

    def image_to_text(self, codes: Codes, caption: str) -> Document:
        """A picture and its caption, as the answer to the standing instruction."""
        return self.questions(codes, [(DESCRIBE, caption)], independent=False)

    def text_to_video(self, caption: str, frames: Sequence[Codes]) -> Document:
        """A caption and its video; an empty caption is the blank prompt of guidance."""
        closing = TextSegment((self.vocabulary.video_end, self.vocabulary.end), supervised=True)
        filmed = [image(codes, supervised=True) for codes in frames]
        return Document((*self.filming_prompt(caption).segments, *filmed, closing))

    def video_to_text(self, frames: Sequence[Codes], caption: str) -> Document:
        """A video and its caption, as the answer to the standing instruction."""
        turns = [Turn(USER, VIDEO + DESCRIBE_VIDEO), Turn(ASSISTANT, caption)]
        return self.conversation(turns, videos=[frames])

    def edit(self, source: Codes, instruction: str, target: Codes) -> Document:
        """A picture, how to change it, and the picture changed."""
        closing = TextSegment((self.vocabulary.image_end, self.vocabulary.end), supervised=True)
        prompt = self.editing_prompt(source, instruction)
        return Document((*prompt.segments, image(target, supervised=True), closing))

    def interleaved(self, text: str, images: Sequence[Codes], *, image_loss: bool = False) -> Document:
        """A text with its images where it says <image>.

        image_loss: the images are supervised, too, with their start (that a picture comes is the model's to say).
        Raises BadSample where images and placeholders are not equal in number.
        """
        parts: list[Part] = [TextSegment((self.vocabulary.begin,), supervised=False)]
        for part in split_at_placeholders(text.strip()):
            if part in PLACEHOLDERS:
                parts.append(Place(part, image_loss))
            else:
                parts.append(TextSegment(self.ids(part), supervised=True))
        parts.append(TextSegment((self.vocabulary.end,), supervised=True))
        check_places([text], len(images), 0)
        return self._filled(parts, images, [])

    def questions(self, codes: Codes, turns: Sequence[tuple[str, str]], independent: bool) -> Document:
        """A picture and one or more (question, answer) turns about it.

        independent: the turns are branches that do not see each other, not one conversation.
        """
        segments: list[Segment] = [*self._picture(codes)]
        if independent:
            for number, turn in enumerate(turns, start=1):
                segments += self.chat.about_picture([turn], branch=number)
        else:
            segments += self.chat.about_picture(turns)
        return Document(tuple(segments))

    def conversation(
        self, turns: Sequence[Turn], images: Sequence[Codes] = (), videos: Sequence[Sequence[Codes]] = ()
    ) -> Document:
        """Turns with their images and videos where they say <image> and <video>.

        Ends with the prompt of an answer where the last turn is the user's. Raises BadSample where pictures and
        placeholders are not equal in number, UserError where the chat template refuses the conversation.
        """
        check_places([turn.text for turn in turns], len(images), len(videos))
        return self._filled(self.chat.conversation(turns), images, videos)

    def text(self, text: str) -> Document:
        """Text alone."""
        begin = TextSegment((self.vocabulary.begin,), supervised=False)
        return Document((begin, TextSegment((*self.ids(text), self.vocabulary.end), supervised=True)))

    # --- prompts ------------------------------------------------------------------------------------------------

    def drawing_prompt(self, caption: str) -> Document:
        """What stands before the first visual position of a drawing."""
        ids = (self.vocabulary.begin, *self.ids(caption), self.vocabulary.image_start)
        return Document((TextSegment(ids, supervised=False),))

    def filming_prompt(self, caption: str) -> Document:
        """What stands before the first visual position of a video."""
        ids = (self.vocabulary.begin, *self.ids(caption), self.vocabulary.video_start)
        return Document((TextSegment(ids, supervised=False),))

    def editing_prompt(self, source: Codes, instruction: str) -> Document:
        """What stands before the first visual position of the picture changed."""
        vocabulary = self.vocabulary
        opening = TextSegment((vocabulary.begin, vocabulary.image_start), supervised=False)
        asked = (vocabulary.image_end, *self.ids(instruction), vocabulary.image_start)
        return Document((opening, image(source, supervised=False), TextSegment(asked, supervised=False)))

    def interleaved_prompt(self, text: str, images: Sequence[Codes]) -> Document:
        """A text with its images where it says <image>, to be continued. Raises BadSample as `interleaved`."""
        whole = self.interleaved(text, images)
        return Document(tuple(replace(segment, supervised=False) for segment in whole.segments[:-1]))

    def question_prompt(self, codes: Codes, question: str) -> Document:
        """What stands before the first token of an answer."""
        return Document((*self._picture(codes), *self.chat.about_picture([(question, None)])))

    # --- parts --------------------------------------------------------------------------------------------------

    def _picture(self, codes: Codes) -> tuple[Segment, ...]:
        """A picture that begins a conversation."""
        if not self.chat.marked:
            return (TextSegment(self.chat.opening, supervised=False), image(codes, supervised=False))
        opening = TextSegment((*self.chat.opening, self.vocabulary.image_start), supervised=False)
        closing = TextSegment((self.vocabulary.image_end,), supervised=False)
        return (opening, image(codes, supervised=False), closing)

    def _filled(
        self, parts: Sequence[Part], images: Sequence[Codes], videos: Sequence[Sequence[Codes]]
    ) -> Document:
        """The parts with every place filled, in order; as many as there are of each kind."""
        vocabulary = self.vocabulary
        waiting = {IMAGE: iter([[codes] for codes in images]), VIDEO: iter(videos)}
        marks = {
            IMAGE: (vocabulary.image_start, vocabulary.image_end),
            VIDEO: (vocabulary.video_start, vocabulary.video_end),
        }
        segments: list[Segment] = []
        for part in parts:
            if isinstance(part, TextSegment):
                segments.append(part)
                continue
            start, end = marks[part.kind]
            if self.chat.marked:
                segments.append(TextSegment((start,), part.supervised))
            for number, codes in enumerate(next(waiting[part.kind])):
                if number and self.chat.between:
                    segments.append(TextSegment(self.chat.between, part.supervised))
                segments.append(image(codes, part.supervised))
            if self.chat.marked:
                segments.append(TextSegment((end,), part.supervised))
        return Document(tuple(segments))
