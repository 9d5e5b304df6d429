"""Questions about scenes, each with one right answer.

An object is referred to by any set of attributes that fits it alone and does not hold the one asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations
from operator import attrgetter

from vilau_common.data.worlds.scene import Question, Scene, SceneObject
from vilau_common.data.worlds.scenes.grammar import phrase
from vilau_common.data.worlds.scenes.words import (
    COLOURS,
    NUMBERS,
    OBJECT,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    plural,
    relation_holds,
)

QUESTIONS = 8  # a picture: one of each kind, kinds that do not apply replaced by others
PRESENT_SHARE = 0.7  # of counted attributes taken from the scene, not at random
# More relation questions of a training picture: two objects to find and two places to compare are learned last.
TRAINING_RELATIONS = 5
COLOR_SHARE = 0.25  # of colour questions spelt "color"
NOTHING = "nothing"
Pairs = frozenset[tuple[str, str]]
_CHOICES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "place": PLACES}
_EXISTS_SETS = (("shape",), ("colour",), ("colour", "shape"), ("colour", "shape"), ("shape", "place"))
_ATTRIBUTE_SETS = tuple(
    (names, attrgetter(*names)) for size in (1, 2, 3) for names in combinations(_CHOICES, size)
)  # what an object may be called by, with the function that takes these values from it


def questions(scene: Scene, rng: random.Random, avoided: Pairs, more_relations: int = 0) -> list[Question]:
    """`QUESTIONS` different questions of balanced kinds, in random order, then up to `more_relations` others.

    None names an `avoided` (colour, shape) combination that the scene does not hold: combinations held out of
    training would otherwise be learned as what is never there.
    """
    kinds = [*_MAKERS, *rng.sample(sorted(_MAKERS), len(_MAKERS))]
    found: dict[str, Question] = {}
    for kind in kinds:
        made = _MAKERS[kind](scene, rng, avoided)
        if made is not None:
            found.setdefault(made[0], Question(question=made[0], answer=made[1], kind=kind))
        if len(found) == QUESTIONS:
            break
    result = list(found.values())
    rng.shuffle(result)
    for _ in range(more_relations):
        made = _relation(scene, rng, avoided)
        if made is not None and made[0] not in found:
            found[made[0]] = Question(question=made[0], answer=made[1], kind="relation")
            result.append(found[made[0]])
    return result


def _text(values: dict[str, str], article: str) -> str:
    return phrase(values.get("shape"), values.get("colour"), values.get("size"), values.get("place"), article)


def _matches(scene: Scene, values: dict[str, str]) -> int:
    """How many objects have all these attributes."""
    return sum(all(getattr(item, name) == value for name, value in values.items()) for item in scene.objects)


def _named_pair(values: dict[str, str]) -> tuple[str | None, str | None]:
    return values.get("colour"), values.get("shape")


def _reference(scene: Scene, item: SceneObject, rng: random.Random, hidden: str | None = None) -> str | None:
    """ "the red circle": attributes, `hidden` not among them, that fit this object alone; None if none do."""
    fitting = []
    for names, values_of in _ATTRIBUTE_SETS:
        if hidden not in names:
            values = values_of(item)
            if sum(values_of(other) == values for other in scene.objects) == 1:
                fitting.append(names)
    if not fitting:
        return None
    return _text({name: getattr(item, name) for name in rng.choice(fitting)}, "the")


def _count(scene: Scene, rng: random.Random, avoided: Pairs) -> tuple[str, str]:
    values: dict[str, str] = {}
    item = rng.choice(scene.objects)
    for name in rng.choice(((), ("shape",), ("colour",), ("size",), ("colour", "shape"))):
        values[name] = getattr(item, name) if rng.random() < PRESENT_SHARE else rng.choice(_CHOICES[name])
    if _named_pair(values) in avoided and _matches(scene, values) == 0:
        del values["colour"]
    noun = plural(values.get("shape", OBJECT))
    words = [word for word in (values.get("size"), values.get("colour"), noun) if word]
    ending = rng.choice((" are there?", "?"))
    return f"how many {' '.join(words)}{ending}", NUMBERS[_matches(scene, values)]


def _colour(scene: Scene, rng: random.Random, avoided: Pairs) -> tuple[str, str] | None:
    item = rng.choice(scene.objects)
    reference = _reference(scene, item, rng, hidden="colour")
    if reference is None:
        return None
    word = "color" if rng.random() < COLOR_SHARE else "colour"
    wording = rng.choice((f"what {word} is {reference}?", f"what is the {word} of {reference}?"))
    return wording, item.colour


def _shape(scene: Scene, rng: random.Random, avoided: Pairs) -> tuple[str, str] | None:
    item = rng.choice(scene.objects)
    reference = _reference(scene, item, rng, hidden="shape")
    if reference is None:
        return None
    wording = rng.choice((f"what shape is {reference}?", f"what is the shape of {reference}?"))
    return wording, item.shape


def _size(scene: Scene, rng: random.Random, avoided: Pairs) -> tuple[str, str] | None:
    item = rng.choice(scene.objects)
    reference = _reference(scene, item, rng, hidden="size")
    if reference is None:
        return None
    assert item.size is not None
    return rng.choice((f"what size is {reference}?", f"how big is {reference}?")), item.size


def _place(scene: Scene, rng: random.Random, avoided: Pairs) -> tuple[str, str] | None:
    item = rng.choice(scene.objects)
    reference = _reference(scene, item, rng, hidden="place")
    if reference is None:
        return None
    assert item.place is not None
    return f"where is {reference}?", item.place


def _exists(scene: Scene, rng: random.Random, avoided: Pairs) -> tuple[str, str]:
    """Yes and no are equally likely; a "no" has one attribute of a true phrase changed."""
    item = rng.choice(scene.objects)
    names = rng.choice(_EXISTS_SETS)
    values: dict[str, str] = {name: getattr(item, name) for name in names}
    answer = "yes"
    if rng.random() < 0.5:
        name = rng.choice(names)
        changes = [{**values, name: word} for word in _CHOICES[name]]
        false = [
            changed
            for changed in changes
            if _matches(scene, changed) == 0 and _named_pair(changed) not in avoided
        ]
        if false:  # always, unless nearly all combinations of a colour are held out
            values, answer = rng.choice(false), "no"
    ending = rng.choice(("", " in the picture")) if "place" not in values else ""
    return f"is there {_text(values, 'a')}{ending}?", answer


def _relation(scene: Scene, rng: random.Random, avoided: Pairs) -> tuple[str, str] | None:
    """Yes and no are equally likely."""
    if len(scene.objects) < 2:
        return None
    first, second = rng.sample(scene.objects, 2)
    one = _reference(scene, first, rng, hidden="place")
    other = _reference(scene, second, rng, hidden="place")
    if one is None or other is None:
        return None
    wanted = rng.random() < 0.5
    relation = rng.choice([name for name in RELATIONS if relation_holds(name, first, second) == wanted])
    return f"is {one} {relation} {other}?", "yes" if wanted else "no"


def _what_at(scene: Scene, rng: random.Random, avoided: Pairs) -> tuple[str, str]:
    """Places with and without an object are equally likely."""
    taken = {item.place: item for item in scene.objects}
    if rng.random() < 0.5:
        place = rng.choice([place for place in PLACES if place not in taken])
        return f"what is at the {place}?", NOTHING
    item = rng.choice(scene.objects)
    return f"what is at the {item.place}?", phrase(item.shape, item.colour, item.size, None)


_MAKERS: dict[str, Callable[[Scene, random.Random, Pairs], tuple[str, str] | None]] = {
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "size": _size,
    "place": _place,
    "exists": _exists,
    "relation": _relation,
    "what_at": _what_at,
}
