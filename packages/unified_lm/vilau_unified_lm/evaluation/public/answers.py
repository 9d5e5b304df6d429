"""From what a model wrote to what is judged, as each data set's own evaluation does it.

VQAv2 and TextVQA strip punctuation and articles, write numbers as digits and put apostrophes into contractions
(GT-Vision-Lab/VQA, vqaEval.py; TextVQA's evaluation splits off "'s" before). Their tables are facts of the metric: a
number of another table is another number.
"""

from __future__ import annotations

import re

ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official pattern means to keep periods after digits, too, but says (?!<= for (?<!; what it does is the metric.
_PERIOD = re.compile(r"\.(?!\d)")

# Written rightly; each is also found with one of its apostrophes left out.
_WORDS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _with_one_left_out(word: str) -> list[str]:
    places = [place for place, character in enumerate(word) if character == "'"]
    return [word[:place] + word[place + 1 :] for place in places]


CONTRACTIONS = {short: word for word in _WORDS.split() for short in _with_one_left_out(word)}
# The official table has this one the wrong way round.
CONTRACTIONS["somebody'd"] = "somebodyd"


def vqa_answer(text: str) -> str:
    """An answer, predicted or true, as VQAv2's evaluation compares it.

    >>> vqa_answer("The two dogs, dont bark.")
    "2 dogs don't bark"
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    number = _COMMA_IN_NUMBER.search(text) is not None
    kept = text
    for mark in _PUNCTUATION:
        at_a_word = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if at_a_word or number else " ")
    words = [DIGITS.get(word, word) for word in _PERIOD.sub("", kept).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def text_vqa_answer(text: str) -> str:
    """The same as TextVQA's evaluation (Pythia's EvalAIAnswerProcessor) compares it.

    >>> text_vqa_answer("McDonald's")
    "mcdonald 's"
    """
    return vqa_answer(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def bare_answer(text: str) -> str:
    """For an exact match of one word or phrase: GQA's answers are lower-case and end without a period."""
    return text.strip().rstrip(".").lower()


def pope_answer(text: str) -> str:
    """yes or no, by POPE's own rule: no where the first sentence has the word no or not, else yes."""
    words = text.split(".")[0].replace(",", "").split()
    return "no" if any(word in ("No", "no", "not") for word in words) else "yes"


def mme_answer(text: str) -> str:
    """yes, no or other, by MME's own rule: what the first four letters hold."""
    beginning = text.strip().lower()[:4]
    return next((answer for answer in ("yes", "no") if answer in beginning), "other")


def letter_answer(text: str, letters: str) -> str | None:
    """The option that an answer names: "B", "b.", "(B) a dog", "Answer: B"; None where it names none.

    letters: of the options, upper-case.
    """
    # Alone or closed by punctuation in either case; elsewhere "a" is an article.
    found = re.match(rf"\s*\(?([{letters}])\s*(?:[).:,]|$)", text, re.IGNORECASE)
    found = found or re.search(rf"\b([{letters}])\b", text)
    return None if found is None else found[1].upper()
