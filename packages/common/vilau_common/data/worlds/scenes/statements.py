"""Statements of the scenes world's language that are true without any picture: the text-only data."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import product

from vilau_common.data.worlds.scenes.words import (
    COLOURS,
    NUMBERS,
    OPPOSITES,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    row_and_column,
)

Pairs = Sequence[tuple[str, str]]  # the (colour, shape) combinations that may be named


def statements(rng: random.Random, avoided: frozenset[tuple[str, str]]) -> list[str]:
    """One or two different true statements; none names an `avoided` (colour, shape) combination."""
    makers = rng.sample(_MAKERS, rng.randint(1, 2))
    pairs = [pair for pair in product(COLOURS, SHAPES) if pair not in avoided]
    return [make(rng, pairs) for make in makers]


def _class(rng: random.Random, pairs: Pairs) -> str:
    (colour, shape), size = rng.choice(pairs), rng.choice(SIZES)
    return rng.choice(
        (
            f"a {colour} {shape} is a {shape}.",
            f"a {colour} {shape} is {colour}.",
            f"a {size} {colour} {shape} is {size}.",
            f"a {size} {colour} {shape} is a {colour} {shape}.",
            f"a {shape} at the {rng.choice(PLACES)} is a {shape}.",
        )
    )


def _difference(rng: random.Random, pairs: Pairs) -> str:
    colour, shape = rng.choice(pairs)
    if rng.random() < 0.5:
        return f"a {shape} is not a {rng.choice([other for other in SHAPES if other != shape])}."
    return f"a {colour} {shape} is not {rng.choice([other for other in COLOURS if other != colour])}."


def _word(rng: random.Random, pairs: Pairs) -> str:
    name, words = rng.choice((("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("place", PLACES)))
    word = rng.choice(words)
    return f"what is {word}? {word} is a {name}."


def _number(rng: random.Random, pairs: Pairs) -> str:
    small, large = sorted(rng.sample(range(len(NUMBERS)), 2))
    difference = NUMBERS[large - small]
    return rng.choice(
        (
            f"{NUMBERS[large]} is more than {NUMBERS[small]}.",
            f"{NUMBERS[small]} is less than {NUMBERS[large]}.",
            f"{NUMBERS[small]} and {difference} make {NUMBERS[large]}.",
        )
    )


def _opposite(rng: random.Random, pairs: Pairs) -> str:
    one, other = rng.choice((("left", "right"), ("above", "below"), ("small", "large"), ("top", "bottom")))
    if rng.random() < 0.5:
        one, other = other, one
    return rng.choice((f"{one} is the opposite of {other}.", f"the opposite of {one} is {other}."))


def _converse(rng: random.Random, pairs: Pairs) -> str:
    (colour, one), (other_colour, other) = rng.sample(pairs, 2)
    if one == other or rng.random() < 0.5:
        one, other = f"{colour} {one}", f"{other_colour} {other}"
    relation = rng.choice(RELATIONS)
    return f"if the {one} is {relation} the {other}, the {other} is {OPPOSITES[relation]} the {one}."


def _chain(rng: random.Random, pairs: Pairs) -> str:
    one, two, three = rng.sample(SHAPES, 3)
    relation = rng.choice(RELATIONS)
    return (
        f"if the {one} is {relation} the {two} and the {two} is {relation} the {three}, "
        f"the {one} is {relation} the {three}."
    )


def _places(rng: random.Random, pairs: Pairs) -> str:
    one, other = rng.sample(PLACES, 2)
    (row, column), (other_row, other_column) = row_and_column(one), row_and_column(other)
    relations = []
    if column != other_column:
        relations.append("left of" if column < other_column else "right of")
    if row != other_row:
        relations.append("above" if row < other_row else "below")
    return f"the {one} is {rng.choice(relations)} the {other}."


_MAKERS: tuple[Callable[[random.Random, Pairs], str], ...] = (
    _class,
    _difference,
    _word,
    _number,
    _opposite,
    _converse,
    _chain,
    _places,
)
