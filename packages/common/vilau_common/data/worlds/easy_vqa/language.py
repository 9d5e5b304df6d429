"""The language of easy-VQA: what its questions tell of a picture, captions from that, statements.

The pictures' content is nowhere in the package; it follows from the question-answer pairs: "what is the
blue shape?" - "rectangle" tells both facts, "is there not a red shape?" - "yes" excludes a colour. About one
picture in nine is not told in full; its captions say what is known.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator

from vilau_common.data.worlds.scene import Question, Requirement, Scene, SceneObject

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "gray", "red", "green", "blue", "teal", "yellow", "brown")  # in the set's spelling
SHAPE = "shape"  # stands for any shape
WORDINGS = 4  # of a caption

_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b")
_SHAPE = re.compile(rf"\b({'|'.join(SHAPES)})\b")
_NEGATION = re.compile(r"\b(?:no|not)\b")
_CAPTION = re.compile(
    rf"(?:there is |a picture of )?a (?:(?P<colour>{'|'.join(COLOURS)}) )?"
    rf"(?P<shape>{'|'.join(SHAPES)}|{SHAPE})"
    rf"|a (?P<shape_first>{'|'.join(SHAPES)}) that is (?P<colour_last>{'|'.join(COLOURS)})"
)


def question_kind(question: str, answer: str) -> str:
    """colour, shape, exists ("is there a red shape?") or absence ("is there not a red shape?")."""
    if answer in ("yes", "no"):
        return "absence" if _NEGATION.search(question) else "exists"
    return "colour" if answer in COLOURS else "shape"


def derive_facts(pairs: Iterable[tuple[str, str]]) -> tuple[str | None, str | None]:
    """(shape, colour) that one picture's question-answer pairs leave possible; None where several are."""
    shapes, colours = set(SHAPES), set(COLOURS)
    for question, answer in pairs:
        colour, shape = _COLOUR.search(question), _SHAPE.search(question)
        if answer not in ("yes", "no"):  # whatever an open question names or is answered with is there
            colours &= {word for word in (answer,) if word in COLOURS} or colours
            shapes &= {word for word in (answer,) if word in SHAPES} or shapes
            colours &= {colour[1]} if colour else colours
            shapes &= {shape[1]} if shape else shapes
            continue
        present = (answer == "yes") != bool(_NEGATION.search(question))
        for named, possible in ((colour, colours), (shape, shapes)):
            if named is not None and present:
                possible &= {named[1]}
            elif named is not None:
                possible -= {named[1]}
    return (
        next(iter(shapes)) if len(shapes) == 1 else None,
        next(iter(colours)) if len(colours) == 1 else None,
    )


def questions(pairs: Iterable[tuple[str, str]]) -> list[Question]:
    """The package's own questions of one picture, unchanged."""
    return [Question(question, answer, question_kind(question, answer)) for question, answer in pairs]


def captions(shape: str | None, colour: str | None, rng: random.Random) -> list[str]:
    """All wordings of what is known: the plainest, then the others in random order."""
    plain = " ".join(word for word in ("a", colour, shape or SHAPE) if word)
    others = [f"there is {plain}", f"a picture of {plain}"]
    if shape is not None and colour is not None:
        others.append(f"a {shape} that is {colour}")
    rng.shuffle(others)
    return [plain, *others]


def parse(caption: str) -> Requirement | None:
    """What a caption says, None if it is none of ours; case, spaces and a final full stop do not matter."""
    text = re.sub(r"\s+\.", ".", " ".join(caption.lower().split())).removesuffix(".")
    match = _CAPTION.fullmatch(text)
    if match is None:
        return None
    shape = match["shape"] or match["shape_first"]
    return Requirement(
        shape=None if shape == SHAPE else shape, colour=match["colour"] or match["colour_last"]
    )


def parse_full(caption: str) -> Scene | None:
    """The scene of a caption that gives shape and colour, else None."""
    said = parse(caption)
    if said is None or said.shape is None or said.colour is None:
        return None
    return Scene((SceneObject(said.shape, said.colour),))


def substitutions(caption: str) -> Iterator[str]:
    """The caption with its colour or its shape replaced, in every way."""
    for pattern, words in ((_COLOUR, COLOURS), (_SHAPE, SHAPES)):
        match = pattern.search(caption)
        for other in words if match is not None else ():
            if match is not None and other != match[1]:
                yield caption[: match.start()] + other + caption[match.end() :]


def statements(rng: random.Random) -> list[str]:
    """One or two true statements that need no picture."""
    shape, colour = rng.choice(SHAPES), rng.choice(COLOURS)
    other_shape = rng.choice([word for word in SHAPES if word != shape])
    other_colour = rng.choice([word for word in COLOURS if word != colour])
    choices = (
        f"a {colour} {shape} is a {shape}.",
        f"a {colour} {shape} is {colour}.",
        f"a {colour} {shape} is a {colour} shape.",
        f"a {shape} is not a {other_shape}.",
        f"a {colour} shape is not {other_colour}.",
        f"what is {colour}? {colour} is a color.",
        f"what is a {shape}? a {shape} is a shape.",
        f"if there is a {colour} {shape}, there is no {other_colour} shape.",
        f"if there is a {colour} {shape}, there is no {other_shape}.",
    )
    return rng.sample(choices, rng.randint(1, 2))
