"""Conversations by chat template: every token as the template renders it, the answers found exactly."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
from tiny_lm import random_codes
from transformers import PreTrainedTokenizerFast

from vilau_common.data.conversation import ASSISTANT, SYSTEM, USER, Turn
from vilau_common.errors import UserError
from vilau_unified_lm.document import Document, DocumentBuilder, ImageSegment, TextSegment
from vilau_unified_lm.vocabulary import Vocabulary

# Of these two transformers itself tells which tokens are the assistant's ({% generation %}).
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Llama 2's: the answer begins with a space, and nothing is added to ask for one.
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{% generation %} {{ m['content'] }} {{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
# As Qwen 3's: the last answer is rendered otherwise than those before it.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "inst": INST, "thinking": THINKING}

# The first answer occurs in what is asked: it must not be found there.
SAID = [
    Turn(USER, "is a star red? red or blue"),
    Turn(ASSISTANT, "red"),
    Turn(USER, "and the circle?"),
    Turn(ASSISTANT, "two green triangles"),
]


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer with ChatML's marks and the template."""
    chatty = copy.deepcopy(tokenizer)
    chatty.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    chatty.chat_template = template
    return chatty


def builder_with(tokenizer: PreTrainedTokenizerFast, template: str) -> DocumentBuilder:
    chatty = with_template(tokenizer, template)
    return DocumentBuilder(chatty, Vocabulary.from_tokenizer(chatty, 13, 4))


@pytest.fixture(params=list(TEMPLATES))
def chatty(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> DocumentBuilder:
    return builder_with(tokenizer, TEMPLATES[request.param])


def text_ids(document: Document) -> list[int]:
    """All of its text ids; pictures are left out."""
    return [id_ for segment in document.segments if isinstance(segment, TextSegment) for id_ in segment.ids]


def mask(document: Document) -> list[bool]:
    """Which of its text ids are supervised."""
    return [s.supervised for s in document.segments if isinstance(s, TextSegment) for _ in s.ids]


def messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    marked = {"<image>": "<image_start><image_end>", "<video>": "<video_start><video_end>"}
    contents = []
    for turn in turns:
        text = turn.text
        for placeholder, marks in marked.items():
            text = text.replace(f"{placeholder}\n", marks).replace(placeholder, marks)
        contents.append({"role": turn.role, "content": text})
    return contents


@pytest.mark.parametrize("template", [CHATML, INST], ids=["chatml", "inst"])
@pytest.mark.parametrize("count", [2, 4])
def test_answers_are_what_transformers_says_they_are(
    tokenizer: PreTrainedTokenizerFast, template: str, count: int
) -> None:
    builder = builder_with(tokenizer, template)
    document = builder.conversation(SAID[:count])
    expected = builder.tokenizer.apply_chat_template(
        messages(SAID[:count]), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert text_ids(document) == expected["input_ids"]
    assert mask(document) == [bool(one) for one in expected["assistant_masks"]]


def test_pictures_stand_where_they_are_spoken_of(chatty: DocumentBuilder) -> None:
    turns = [Turn(USER, "<image>\nis it <image> or <video>"), *SAID[1:]]
    images, video = [random_codes(0), random_codes(1)], [random_codes(2), random_codes(3)]
    document = chatty.conversation(turns, images, [video])
    turns[0] = Turn(USER, "<image>is it<image>or<video>")  # white space beside a picture means nothing
    rendered = chatty.tokenizer.apply_chat_template(messages(turns), tokenize=False)
    assert text_ids(document) == chatty.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    vocabulary = chatty.vocabulary
    around = []
    for before, segment, after in zip(
        document.segments, document.segments[1:], document.segments[2:], strict=False
    ):
        if isinstance(segment, ImageSegment):
            assert not segment.supervised
            last = before.ids[-1] if isinstance(before, TextSegment) else None
            first = after.ids[0] if isinstance(after, TextSegment) else None
            around.append((last, first, segment.codes.tobytes()))
    expected_codes = [codes.reshape(9, 4).tobytes() for codes in (*images, *video)]
    assert [codes for _, _, codes in around] == expected_codes
    picture = (vocabulary.image_start, vocabulary.image_end)
    assert [pair[:2] for pair in around] == [
        picture,
        picture,
        (vocabulary.video_start, None),
        (None, vocabulary.video_end),
    ]


def test_an_answers_supervision_begins_where_its_prompt_ends_and_stops_at_the_end_of_its_turn(
    chatty: DocumentBuilder,
) -> None:
    document = chatty.conversation(SAID)
    answers = [
        chatty.tokenizer.decode(segment.ids)
        for segment in document.segments
        if isinstance(segment, TextSegment) and segment.supervised
    ]
    closing = chatty.tokenizer.decode([chatty.chat.end])
    assert [answer.endswith(closing) for answer in answers] == [True, True]
    said = [answer.removesuffix(closing).replace("<think>\n\n</think>", "").strip() for answer in answers]
    assert said == ["red", "two green triangles"]
    for count in (1, 3):  # what stands before an answer is what generation is given
        prompt = chatty.conversation(SAID[:count])
        length = len(text_ids(prompt))
        assert text_ids(document)[:length] == text_ids(prompt)
        assert mask(document)[:length] == mask(prompt) and not mask(prompt)[-1]
        assert mask(document)[length]


@pytest.mark.parametrize("independent", [False, True])
def test_questions_are_conversations_about_one_picture(chatty: DocumentBuilder, independent: bool) -> None:
    codes = random_codes(0)
    turns = [("how many?", "two"), ("a star?", "no")]
    document = chatty.questions(codes, turns, independent)
    trunk = [segment for segment in document.segments if segment.branch == 0]
    if not independent:
        whole = chatty.conversation(
            [
                Turn(USER, "<image>how many?"),
                Turn(ASSISTANT, "two"),
                Turn(USER, "a star?"),
                Turn(ASSISTANT, "no"),
            ],
            [codes],
        )
        assert (text_ids(document), mask(document)) == (text_ids(whole), mask(whole))
        assert trunk == list(document.segments)
    else:
        for number, (question, answer) in enumerate(turns, start=1):
            branch = [segment for segment in document.segments if segment.branch == number]
            seen = Document((*trunk, *branch))
            alone = chatty.conversation([Turn(USER, f"<image>{question}"), Turn(ASSISTANT, answer)], [codes])
            assert (text_ids(seen), mask(seen)) == (text_ids(alone), mask(alone))
            assert isinstance(trunk[1], ImageSegment) and len(trunk) == 3
    prompt = chatty.question_prompt(codes, "how many?")
    assert text_ids(document)[: len(text_ids(prompt))] == text_ids(prompt)
    assert text_ids(chatty.image_to_text(codes, "two")) == text_ids(
        chatty.conversation([Turn(USER, "<image>describe the picture."), Turn(ASSISTANT, "two")], [codes])
    )


def test_a_picture_in_an_answer_is_supervised(chatty: DocumentBuilder) -> None:
    document = chatty.conversation([Turn(USER, "a star"), Turn(ASSISTANT, "<image>")], [random_codes(0)])
    place = next(i for i, segment in enumerate(document.segments) if isinstance(segment, ImageSegment))
    assert [segment.supervised for segment in document.segments[place - 1 : place + 2]] == [True] * 3
    assert document.segments[place + 1].ids == (chatty.vocabulary.image_end,)


def test_a_systems_turn_comes_first(tokenizer: PreTrainedTokenizerFast) -> None:
    builder = builder_with(tokenizer, CHATML)
    turns = [Turn(SYSTEM, "be kind"), *SAID]
    document = builder.conversation(turns)
    rendered = builder.tokenizer.apply_chat_template(messages(turns), tokenize=False)
    assert text_ids(document) == builder.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert sum(mask(document)) == sum(mask(builder.conversation(SAID)))


def test_what_is_drawn_or_read_alone_has_no_template(
    builder: DocumentBuilder, tokenizer: PreTrainedTokenizerFast
) -> None:
    chatty = builder_with(tokenizer, CHATML)
    for make in (
        lambda one: one.text_to_image("a star", random_codes(0)),
        lambda one: one.edit(random_codes(0), "a star", random_codes(1)),
        lambda one: one.text("a star"),
        lambda one: one.interleaved("a <image> star", [random_codes(0)]),
    ):
        assert text_ids(make(chatty)) == text_ids(make(builder))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace("<|im_end|>", "."), "no special token ends an answer"),
        (
            CHATML.replace("assistant\n{% endif %}", "robot\n{% endif %}"),
            "an answer is not where its prompt ends",
        ),
        (
            CHATML.replace(
                "<|im_end|>{% endgeneration %}",
                "{{ '</s>' if loop.last else '<|im_end|>' }}{% endgeneration %}",
            ),
            "its answers end with different tokens",
        ),
        (
            CHATML.replace(
                "{{ m['content'] }}<|im_end|>{% endg", "{{ m['content'] | upper }}<|im_end|>{% endg"
            ),
            "prompt ends",
        ),
        ("{{ raise_exception('never') }}", "the chat template refuses a conversation: never"),
    ],
)
def test_templates_that_hide_the_answers_are_refused(
    tokenizer: PreTrainedTokenizerFast, template: str, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        builder_with(tokenizer, template)


def test_the_marks_of_pictures_are_no_text(chatty: DocumentBuilder) -> None:
    turns = [Turn(USER, "what is <image_start><image_end>?"), Turn(ASSISTANT, "a picture")]
    with pytest.raises(UserError, match="holds the tokens that stand around pictures"):
        chatty.conversation(turns)
    with pytest.raises(UserError, match="holds the tokens that stand around pictures"):
        chatty.conversation([Turn(USER, "what is <image_end>?"), Turn(ASSISTANT, "a mark")])


def test_a_question_about_one_picture_cannot_hold_another(chatty: DocumentBuilder) -> None:
    with pytest.raises(UserError, match="holds another"):
        chatty.questions(random_codes(0), [("like <image>?", "no")], independent=True)
