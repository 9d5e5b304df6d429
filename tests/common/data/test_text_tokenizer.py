"""The text tokenizer of models built from scratch: words, and phrases where they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from vilau_common.data.text_tokenizer import train_text_tokenizer
from vilau_common.errors import UserError

TEXTS = [
    "is there a red circle?",
    "is there a blue square?",
    "is there a red square. is there a cross",
    "there is a blue circle.",
    "is there nothing?",
] * 3
STRANGE = ["A  zebra, and é", "is there a red circle?\n", "", "is.there is there a", "日本 red"]


def tokens_of(tokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_words_are_tokens_and_no_token_spans_words(tmp_path: Path) -> None:
    tokenizer = train_text_tokenizer(TEXTS, tmp_path, vocabulary_size=400)
    assert tokens_of(tokenizer, "is there a red circle?") == ["Ġis", "Ġthere", "Ġa", "Ġred", "Ġcircle", "?"]
    assert not any("Ġ" in token[1:] for token in tokenizer.get_vocab())


def test_superwords_are_the_commonest_phrases(tmp_path: Path) -> None:
    tokenizer = train_text_tokenizer(TEXTS, tmp_path, vocabulary_size=400, superwords=2)
    assert tokens_of(tokenizer, "is there a red circle?") == ["ĠisĠthereĠa", "Ġred", "Ġcircle", "?"]
    spanning = {token for token in tokenizer.get_vocab() if "Ġ" in token[1:]}
    assert spanning == {"ĠisĠthere", "ĠisĠthereĠa"}
    assert len(set(tokenizer.get_vocab().values())) == len(tokenizer)


def test_superwords_end_with_the_phrases_and_never_span_punctuation(tmp_path: Path) -> None:
    tokenizer = train_text_tokenizer(TEXTS, tmp_path, vocabulary_size=500, superwords=100)
    spanning = [token for token in tokenizer.get_vocab() if "Ġ" in token[1:]]
    assert 0 < len(spanning) < 100 and not any(mark in token for token in spanning for mark in ".?")
    assert tokens_of(tokenizer, "is there a red square. is there a cross")[:2] == [
        "ĠisĠthereĠaĠredĠsquare",
        ".",
    ]


@pytest.mark.parametrize("superwords", [0, 5])
def test_any_text_comes_back_and_the_saved_tokenizer_is_the_same(tmp_path: Path, superwords: int) -> None:
    tokenizer = train_text_tokenizer(TEXTS, tmp_path, vocabulary_size=400, superwords=superwords)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert [tokenizer.convert_tokens_to_ids(token) for token in ("<pad>", "<s>", "</s>")] == [0, 1, 2]
    for text in [*TEXTS, *STRANGE]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert again(text, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer.decode(ids).removeprefix(" ") == text.removeprefix(" ")


@pytest.mark.parametrize("superwords", [-1, 42])
def test_no_room_for_superwords_is_told(tmp_path: Path, superwords: int) -> None:
    assert len(train_text_tokenizer(TEXTS, tmp_path, vocabulary_size=300, superwords=41)) <= 300
    with pytest.raises(UserError, match=f"superwords is {superwords} .* 0 to vocabulary_size - 259"):
        train_text_tokenizer(TEXTS, tmp_path, vocabulary_size=300, superwords=superwords)


@pytest.mark.parametrize(("mark", "joined"), [("\n", False), ("—", False), ("”", False), ("é", True)])
def test_phrases_end_at_any_punctuation_and_at_no_letter(tmp_path: Path, mark: str, joined: bool) -> None:
    texts = [f"caf{mark} noir"] * 20
    tokenizer = train_text_tokenizer(texts, tmp_path, vocabulary_size=400, superwords=20)
    assert any("Ġ" in token[1:] for token in tokenizer.get_vocab()) == joined
