"""How answers are brought to the form that is judged, and the numbers made of them."""

from __future__ import annotations

import numpy as np
import pytest

from vilau_unified_lm.evaluation.public.answers import (
    CONTRACTIONS,
    bare_answer,
    letter_answer,
    mme_answer,
    pope_answer,
    text_vqa_answer,
    vqa_answer,
)
from vilau_unified_lm.evaluation.public.scores import YesNo, means, paired_accuracy, soft_accuracy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The two dogs.", "2 dogs"),
        ("none", "0"),
        ("a man, and an apple", "man and apple"),
        ("black/white", "black white"),  # parts two words
        ("black / white", "black white"),  # stands beside one: goes
        ("1,000", "1000"),
        ("1,000 re-used", "1000 reused"),  # a comma in a number takes all punctuation away without a space
        ("3.5 m.", "3.5 m"),
        ("isnt", "isn't"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),  # as the official table has it
        ("it's", "it's"),
        ("line\nbreak\t", "line break"),
        ("Yes.", "yes"),
        ("the", ""),
    ],
)
def test_vqa_answers(text: str, expected: str) -> None:
    assert vqa_answer(text) == expected


def test_the_table_of_contractions_is_the_official_one() -> None:
    """Of its 120 entries 114 change a word in lower case, which all answers are brought to."""
    assert len(CONTRACTIONS) == 114
    assert all(short != word for short, word in CONTRACTIONS.items())
    assert {short: CONTRACTIONS[short] for short in ("yall'd've", "y'alld've", "y'all'dve", "ow's'at")} == {
        "yall'd've": "y'all'd've",
        "y'alld've": "y'all'd've",
        "y'all'dve": "y'all'd've",
        "ow's'at": "'ow's'at",
    }
    assert "hell" not in CONTRACTIONS and "were" not in CONTRACTIONS


def test_textvqa_splits_the_genitive_off() -> None:
    assert text_vqa_answer("McDonald's") == "mcdonald 's"
    assert text_vqa_answer("What, the 1,5?") == "what 15"


def test_soft_accuracy_is_the_mean_over_leaving_each_person_out() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        truths = rng.choice(["cat", "dog", "cow"], size=10).tolist()
        slow = np.mean([min(1, (truths[:i] + truths[i + 1 :]).count("cat") / 3) for i in range(len(truths))])
        assert soft_accuracy("cat", truths) == pytest.approx(slow)
    assert soft_accuracy("cat", ["cat"] * 3 + ["dog"] * 7) == pytest.approx(0.9)
    assert soft_accuracy("cat", ["cat"] * 4 + ["dog"] * 6) == 1
    assert soft_accuracy("bird", ["cat"] * 10) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("No, there is none", "no"),
        ("There is not a dog.", "no"),
        ("A dog. No cat", "yes"),  # the first sentence alone counts
        ("nothing", "yes"),  # words, not letters
        ("", "yes"),
    ],
)
def test_pope_answers(text: str, expected: str) -> None:
    assert pope_answer(text) == expected


def test_mme_answers_are_read_in_the_first_four_letters() -> None:
    given = ["Yes, it is", " no.", "A yes", "The answer is yes", "unknown", ""]
    assert [mme_answer(text) for text in given] == ["yes", "no", "other", "other", "other", "other"]
    assert mme_answer("not so") == "no"  # as MME's own script reads it


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        (" b. two towers", "B"),
        ("(C) three", "C"),
        ("Answer: D", "D"),
        ("a", "A"),
        ("two dogs", None),
        ("is it a dog", None),  # an article
        ("E", None),
        ("Bad", None),
    ],
)
def test_letters(text: str, expected: str | None) -> None:
    assert letter_answer(text, "ABCD") == expected


def test_bare_answers() -> None:
    assert bare_answer(" Woman. ") == "woman"


def test_yes_no_numbers() -> None:
    found = YesNo.of(["yes", "yes", "no", "no", "yes"], ["yes", "no", "yes", "no", "yes"])
    assert found == YesNo(
        accuracy=pytest.approx(3 / 5),
        precision=pytest.approx(2 / 3),
        recall=pytest.approx(2 / 3),
        f1=pytest.approx(2 / 3),
        yes_share=pytest.approx(3 / 5),
    )
    silent = YesNo.of(["no", "no"], ["yes", "no"])
    assert silent == YesNo(accuracy=0.5, precision=0, recall=0, f1=0, yes_share=0)


def test_accuracy_plus_wants_both_questions_of_a_picture() -> None:
    assert paired_accuracy({"a": [True, True], "b": [True, False], "c": [False, False]}) == (
        pytest.approx(3 / 6),
        pytest.approx(1 / 3),
    )


def test_means_in_all_and_by_kind() -> None:
    scores = [("x", 1.0), ("x", 0.0), ("y", 1.0), ("", 0.0)]
    assert means(scores, "accuracy") == {"accuracy": 0.5, "accuracy/x": 0.5, "accuracy/y": 1.0}
    assert means([], "accuracy") == {}
