"""What documents say: the layouts of `document.py`'s docstring, written out."""

from __future__ import annotations

import pytest
from tiny_lm import POSITIONS, D, as_tensor, random_codes

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
