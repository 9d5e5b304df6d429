"""The captions' grammar: phrases for objects, and the parser that reads captions back.

caption  = ["there is " | "a picture of "] list | sentences | count | relation ["."]
list     = phrase {", " phrase} [" and " phrase]
sentences= "there is " phrase {". there is " phrase}
count    = ["there are " | "a picture of "] ("two" | "three") [size] [colour] plural
relation = ["there is " | "a picture of "] phrase ("left of" | "right of" | "above" | "below") phrase
phrase   = "a" [size] [colour] (shape | "object") ["at the" place]
         | "at the" place "a" [size] [colour] (shape | "object")
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from vilau_common.data.worlds.scene import Requirement, Scene, SceneObject
from vilau_common.data.worlds.scenes.words import (
    COLOURS,
    NUMBERS,
    OBJECT,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    plural,
)


def _one_of(words: tuple[str, ...]) -> str:
    """A pattern for any of the words, the longest first ("top left" before "top")."""
    return "|".join(sorted(words, key=len, reverse=True))


_PLACE = f"(?:{_one_of(PLACES)})"
_PHRASE = re.compile(
    rf"\b(?:at the (?P<before>{_PLACE}) )?"
    rf"a (?:(?P<size>{_one_of(SIZES)}) )?(?:(?P<colour>{_one_of(COLOURS)}) )?"
    rf"(?P<shape>{_one_of((*SHAPES, OBJECT))})"
    rf"(?: at the (?P<after>{_PLACE}))?\b"
)
_COUNT = re.compile(
    rf"(?:there are |a picture of )?(?P<number>two|three) "
    rf"(?:(?P<size>{_one_of(SIZES)}) )?(?:(?P<colour>{_one_of(COLOURS)}) )?"
    rf"(?P<shape>{_one_of(tuple(plural(shape) for shape in (*SHAPES, OBJECT)))})"
)
_SINGULAR = {plural(shape): shape for shape in (*SHAPES, OBJECT)}
_MARK = "#"  # stands for a phrase in a caption's skeleton; no caption holds it
_LIST = re.compile(rf"(?:there is |a picture of )?{_MARK}(?:, {_MARK})*(?: and {_MARK})?")
_SENTENCES = re.compile(rf"there is {_MARK}(?:\. there is {_MARK})*")
_RELATION = re.compile(rf"(?:there is |a picture of )?{_MARK} (?P<relation>{_one_of(RELATIONS)}) {_MARK}")


def phrase(
    shape: str | None, colour: str | None, size: str | None, place: str | None, article: str = "a"
) -> str:
    """ "a small red circle at the top left", leaving out what is None."""
    words = [word for word in (article, size, colour, shape or OBJECT) if word]
    if place is not None:
        words += ["at the", place]
    return " ".join(words)


def full_phrase(item: SceneObject) -> str:
    """Everything that an object has."""
    return phrase(item.shape, item.colour, item.size, item.place)


def parse(caption: str) -> tuple[Requirement, ...] | None:
    """What a caption, full or partial, says of each object; None if it is not of the grammar.

    Upper case, surplus spaces (before punctuation too) and a final full stop do not matter.
    """
    text = re.sub(r"\s+([.,])", r"\1", " ".join(caption.lower().split())).removesuffix(".")
    if _MARK in text:
        return None
    counted = _COUNT.fullmatch(text)
    if counted is not None:
        return _counted(counted)
    found = [_requirement(match) for match in _PHRASE.finditer(text)]
    if None in found:
        return None
    phrases = tuple(item for item in found if item is not None)
    skeleton = _PHRASE.sub(_MARK, text)
    relation = _RELATION.fullmatch(skeleton)
    if relation is not None:
        return (replace(phrases[0], relation=relation["relation"], other=1), phrases[1])
    if _LIST.fullmatch(skeleton) or _SENTENCES.fullmatch(skeleton):
        return phrases
    return None


def parse_full(caption: str) -> Scene | None:
    """The scene of a caption that gives every attribute of every object, at distinct places; else None."""
    objects = []
    for item in parse(caption) or ():
        if item.shape is None or item.colour is None or item.size is None or item.place is None:
            return None
        objects.append(SceneObject(item.shape, item.colour, item.size, item.place))
    if not objects or len({item.place for item in objects}) < len(objects):
        return None
    return Scene(tuple(objects))


def substitutions(caption: str) -> Iterator[str]:
    """The caption with one shape, colour, size or place word of one phrase replaced, in every way."""
    counted = _COUNT.fullmatch(caption.removesuffix("."))
    for match in [counted] if counted is not None else list(_PHRASE.finditer(caption)):
        shapes = SHAPES if counted is None else tuple(plural(shape) for shape in SHAPES)
        choices = {"shape": shapes, "colour": COLOURS, "size": SIZES, "before": PLACES, "after": PLACES}
        for name in match.re.groupindex.keys() & choices.keys():
            word = match[name]
            if word is None or _SINGULAR.get(word, word) == OBJECT:
                continue
            for other in choices[name]:
                if other != word:
                    yield caption[: match.start(name)] + other + caption[match.end(name) :]


def _requirement(match: re.Match[str]) -> Requirement | None:
    """What a phrase says; None if it gives a place twice."""
    if match["before"] and match["after"]:
        return None
    return Requirement(
        shape=None if match["shape"] == OBJECT else match["shape"],
        colour=match["colour"],
        size=match["size"],
        place=match["before"] or match["after"],
    )


def _counted(match: re.Match[str]) -> tuple[Requirement, ...]:
    """One requirement for each of the counted objects."""
    shape = _SINGULAR[match["shape"]]
    item = Requirement(shape=None if shape == OBJECT else shape, colour=match["colour"], size=match["size"])
    return (item,) * NUMBERS.index(match["number"])
