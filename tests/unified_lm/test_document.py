"""What documents say: the layouts of `document.py`'s docstring, written out."""

from __future__ import annotations

import pytest
from tiny_lm import POSITIONS, D, as_tensor, random_codes

from vilau_common.data.conversation import ASSISTANT, SYSTEM, USER, Turn
from vilau_common.data.encoder import BadSample
from vilau_unified_lm.document import Document, DocumentBuilder, ImageSegment
from vilau_unified_lm.vocabulary import Vocabulary

V = "V"


def flat(document: Document) -> tuple[list[object], list[bool]]:
    """Text ids with "V" for each visual position, and which of them are supervised."""
    tokens: list[object] = []
    supervised: list[bool] = []
    for segment in document.segments:
        here = [V] * len(segment.codes) if isinstance(segment, ImageSegment) else list(segment.ids)
        tokens += here
        supervised += [segment.supervised] * len(here)
    return tokens, supervised


@pytest.fixture
def words(builder: DocumentBuilder):
    return lambda text: list(builder.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_text_to_image(builder: DocumentBuilder, vocabulary: Vocabulary, words) -> None:
    codes = random_codes(0)
    document = builder.text_to_image("a red circle", codes)
    prompt = [vocabulary.begin, *words("a red circle"), vocabulary.image_start]
    answer = [V] * POSITIONS + [vocabulary.image_end, vocabulary.end]
    assert flat(document) == (prompt + answer, [False] * len(prompt) + [True] * len(answer))
    assert len(document) == len(prompt + answer)
    (image,) = [segment for segment in document.segments if isinstance(segment, ImageSegment)]
    assert image.codes.shape == (POSITIONS, D)
    assert image.codes[1].tolist() == codes[0, 1].tolist()  # row-major: first along the row
    assert image.codes[3].tolist() == codes[1, 0].tolist()


def test_blank_prompt_has_no_caption(builder: DocumentBuilder, vocabulary: Vocabulary) -> None:
    tokens, supervised = flat(builder.text_to_image("", random_codes(0)))
    expected = [
        vocabulary.begin,
        vocabulary.image_start,
        *[V] * POSITIONS,
        vocabulary.image_end,
        vocabulary.end,
    ]
    assert tokens == expected
    assert supervised == [False, False] + [True] * (POSITIONS + 2)


def test_image_to_text(builder: DocumentBuilder, vocabulary: Vocabulary, words) -> None:
    tokens, supervised = flat(builder.image_to_text(random_codes(0), "two stars"))
    asked = words("describe the picture.\n")
    picture = [vocabulary.begin, vocabulary.image_start, *[V] * POSITIONS, vocabulary.image_end]
    answer = [*words("two stars"), vocabulary.end]
    assert tokens == picture + asked + answer
    assert supervised == [False] * len(picture + asked) + [True] * len(answer)


@pytest.mark.parametrize("independent", [False, True])
def test_questions(builder: DocumentBuilder, vocabulary: Vocabulary, words, independent: bool) -> None:
    turns = [("how many?", "two"), ("a star?", "no")]
    document = builder.questions(random_codes(0), turns, independent)
    assert [segment.branch for segment in document.segments] == [0] * 3 + (
        [1, 1, 2, 2] if independent else [0] * 4
    )
    tokens, supervised = flat(document)
    end = vocabulary.end
    picture = [vocabulary.begin, vocabulary.image_start, *[V] * POSITIONS, vocabulary.image_end]
    parts = [
        (picture + words("how many?\n"), False),
        ([*words("two"), end], True),
        (words("a star?\n"), False),
        ([*words("no"), end], True),
    ]
    assert tokens == [token for part, _ in parts for token in part]
    assert supervised == [kept for part, kept in parts for _ in part]


def test_text_to_video(builder: DocumentBuilder, vocabulary: Vocabulary, words) -> None:
    frames = [random_codes(seed) for seed in range(3)]
    document = builder.text_to_video("a red circle", frames)
    prompt = [vocabulary.begin, *words("a red circle"), vocabulary.video_start]
    answer = [V] * 3 * POSITIONS + [vocabulary.video_end, vocabulary.end]
    assert flat(document) == (prompt + answer, [False] * len(prompt) + [True] * len(answer))
    filmed = [segment.codes for segment in document.segments if isinstance(segment, ImageSegment)]
    assert [codes.tolist() for codes in filmed] == [codes.reshape(POSITIONS, D).tolist() for codes in frames]
    blank, _ = flat(builder.text_to_video("", frames))
    assert blank[:3] == [vocabulary.begin, vocabulary.video_start, V]


def test_video_to_text(builder: DocumentBuilder, vocabulary: Vocabulary, words) -> None:
    tokens, supervised = flat(builder.video_to_text([random_codes(0), random_codes(1)], "two stars"))
    video = [vocabulary.begin, vocabulary.video_start, *[V] * 2 * POSITIONS, vocabulary.video_end]
    asked = words("describe the video.\n")
    answer = [*words("two stars"), vocabulary.end]
    assert tokens == video + asked + answer
    assert supervised == [False] * len(video + asked) + [True] * len(answer)


def test_edit(builder: DocumentBuilder, vocabulary: Vocabulary, words) -> None:
    source, target = random_codes(0), random_codes(1)
    document = builder.edit(source, "make it blue", target)
    picture = [vocabulary.image_start, *[V] * POSITIONS, vocabulary.image_end]
    given = [vocabulary.begin, *picture, *words("make it blue"), vocabulary.image_start]
    drawn = [V] * POSITIONS + [vocabulary.image_end, vocabulary.end]
    assert flat(document) == (given + drawn, [False] * len(given) + [True] * len(drawn))
    codes = [segment.codes for segment in document.segments if isinstance(segment, ImageSegment)]
    assert [c.tolist() for c in codes] == [c.reshape(POSITIONS, D).tolist() for c in (source, target)]


@pytest.mark.parametrize("image_loss", [False, True])
def test_interleaved(builder: DocumentBuilder, vocabulary: Vocabulary, words, image_loss: bool) -> None:
    text = "a star <image> and <image><image>\nends"
    images = [random_codes(seed) for seed in range(3)]
    document = builder.interleaved(text, images, image_loss=image_loss)
    picture = ([vocabulary.image_start, *[V] * POSITIONS, vocabulary.image_end], image_loss)
    parts = [
        ([vocabulary.begin], False),
        (words("a star"), True),
        picture,
        (words("and"), True),
        picture,
        picture,
        (words("ends"), True),
        ([vocabulary.end], True),
    ]
    assert flat(document) == (
        [token for part, _ in parts for token in part],
        [kept for part, kept in parts for _ in part],
    )
    shown = [segment.codes for segment in document.segments if isinstance(segment, ImageSegment)]
    assert [codes.tolist() for codes in shown] == [codes.reshape(POSITIONS, D).tolist() for codes in images]


def test_conversation_with_pictures_anywhere(builder: DocumentBuilder, vocabulary: Vocabulary, words) -> None:
    turns = [
        Turn(SYSTEM, "be kind"),
        Turn(USER, "<image>\nlike <image>"),
        Turn(ASSISTANT, "no"),
        Turn(USER, "<video> this?"),
        Turn(ASSISTANT, "rather <image>"),
    ]
    images = [random_codes(seed) for seed in range(3)]
    document = builder.conversation(turns, images, [[random_codes(7), random_codes(8)]])
    picture = [vocabulary.image_start, *[V] * POSITIONS, vocabulary.image_end]
    video = [vocabulary.video_start, *[V] * 2 * POSITIONS, vocabulary.video_end]
    parts = [
        ([vocabulary.begin, *words("be kind\n")], False),
        ([*picture, *words("like"), *picture, *words("\n")], False),
        ([*words("no"), vocabulary.end], True),
        ([*video, *words("this?\n")], False),
        ([*words("rather"), *picture, vocabulary.end], True),
    ]
    assert flat(document) == (
        [token for part, _ in parts for token in part],
        [kept for part, kept in parts for _ in part],
    )
    shown = [segment.codes[0].tolist() for segment in document.segments if isinstance(segment, ImageSegment)]
    expected = [images[0], images[1], random_codes(7), random_codes(8), images[2]]
    assert shown == [codes.reshape(POSITIONS, D)[0].tolist() for codes in expected]


def test_a_conversation_about_one_picture_is_questions(builder: DocumentBuilder) -> None:
    """Data of other people's train what `vilau ask` asks, token for token."""
    turns = [
        Turn(USER, "<image>\nhow many?"),
        Turn(ASSISTANT, "two"),
        Turn(USER, "a star?"),
        Turn(ASSISTANT, "no"),
    ]
    codes = random_codes(0)
    questions = builder.questions(codes, [("how many?", "two"), ("a star?", "no")], independent=False)
    assert flat(builder.conversation(turns, [codes])) == flat(questions)
    prompt = builder.conversation(turns[:1], [codes])
    assert flat(prompt) == flat(builder.question_prompt(codes, "how many?"))


@pytest.mark.parametrize(
    ("images", "videos", "reason"),
    [
        (1, 0, "1 image, but 2 <image> in the text"),
        (3, 0, "3 images, but 2 <image> in the text"),
        (2, 1, "1 video, but 0 <video> in the text"),
    ],
)
def test_pictures_and_placeholders_have_to_match(
    builder: DocumentBuilder, images: int, videos: int, reason: str
) -> None:
    codes = [random_codes(seed) for seed in range(images)]
    turns = [Turn(USER, "<image> or <image>"), Turn(ASSISTANT, "no")]
    with pytest.raises(BadSample, match=reason):
        builder.conversation(turns, codes, [[random_codes(9)]] * videos)
    if not videos:
        with pytest.raises(BadSample, match=reason):
            builder.interleaved("<image> or <image>", codes)


def test_text(builder: DocumentBuilder, vocabulary: Vocabulary, words) -> None:
    tokens, supervised = flat(builder.text("a red circle"))
    assert tokens == [vocabulary.begin, *words("a red circle"), vocabulary.end]
    assert supervised == [False] + [True] * (len(tokens) - 1)


def test_prompts_are_what_stands_before_the_answer(builder: DocumentBuilder) -> None:
    """What generation gives the model is, token for token, what training gave it."""
    codes = random_codes(0)
    for caption in ("a red circle", ""):
        prompt, _ = flat(builder.drawing_prompt(caption))
        document, _ = flat(builder.text_to_image(caption, codes))
        assert document[: len(prompt)] == prompt
        assert document[len(prompt)] is V
    prompt, _ = flat(builder.filming_prompt("a red circle"))
    document, supervised = flat(builder.text_to_video("a red circle", [codes]))
    assert document[: len(prompt)] == prompt
    assert supervised.index(True) == len(prompt)
    prompt, _ = flat(builder.editing_prompt(codes, "make it blue"))
    document, supervised = flat(builder.edit(codes, "make it blue", codes))
    assert document[: len(prompt)] == prompt
    assert supervised.index(True) == len(prompt)
    prompt, _ = flat(builder.question_prompt(codes, "how many?"))
    document, supervised = flat(builder.questions(codes, [("how many?", "two")], independent=True))
    assert document[: len(prompt)] == prompt
    assert supervised.index(True) == len(prompt)


def test_codes_may_come_as_a_grid_or_as_rows(builder: DocumentBuilder) -> None:
    codes = random_codes(0)
    grid = builder.text_to_image("", codes).segments[1]
    rows = builder.text_to_image("", as_tensor(codes).numpy()).segments[1]
    assert isinstance(grid, ImageSegment) and isinstance(rows, ImageSegment)
    assert (grid.codes == rows.codes).all()
