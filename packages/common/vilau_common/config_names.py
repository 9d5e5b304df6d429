"""The names that a configuration knows: its keys, its choices, their types; and the closest to a misspelt one."""

from __future__ import annotations

import difflib
import types
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from vilau_common.config_objects import is_laid_open

SUGGESTIONS = 3
# How alike two names must be, by difflib's ratio, for one to be taken as a slip for the other.
WHOLE_KEY_LIKENESS = 0.75
LAST_PART_LIKENESS = 0.7
TIE = 0.03


@dataclass(frozen=True)
class KnownNames:
    """What can be overridden.

    keys: every dotted key. sections: those that hold others. mappings: those of free `dict` fields. choices: the
    groups that the command chooses from, as an override writes them (quantizer@tower.quantizer).
    """

    keys: tuple[str, ...]
    sections: frozenset[str]
    mappings: frozenset[str]
    choices: tuple[str, ...]

    @classmethod
    def of(cls, config: DictConfig, choices: Iterable[str]) -> KnownNames:
        """The names in a composed configuration, whose values need not be complete."""
        nodes = list(_walk(config, ""))
        return cls(
            keys=tuple(key for key, _ in nodes),
            sections=frozenset(key for key, node in nodes if isinstance(node, DictConfig)),
            mappings=frozenset(key for key, node in nodes if OmegaConf.get_type(node) is dict),
            choices=tuple(choices),
        )


def _walk(config: DictConfig, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, node in config.items_ex(resolve=False):
        key = prefix + str(name)
        yield key, node
        if isinstance(node, DictConfig) and is_laid_open(node):
            yield from _walk(node, f"{key}.")


def fields_of(section: str, cls: Any) -> list[str]:
    """The dotted keys of a section of the dataclass `cls`; none for anything else."""
    prefix = f"{section}." if section else ""
    return [prefix + name for name in cls.__dataclass_fields__] if is_dataclass(cls) else []


def closest(name: str, candidates: Iterable[str]) -> list[str]:
    """The candidates that `name` was likely meant to be: most alike as a whole, or else in the last part alone."""
    known = list(dict.fromkeys(candidates))
    whole = _most_alike(name, known, WHOLE_KEY_LIKENESS)
    if whole:
        return whole
    alike = _most_alike(last_part(name), {last_part(candidate) for candidate in known}, LAST_PART_LIKENESS)
    return [candidate for candidate in known if last_part(candidate) in alike][:SUGGESTIONS]


def _most_alike(name: str, candidates: Collection[str], likeness: float) -> list[str]:
    """Those at least `likeness` alike that are about as much alike as the best of them."""
    best = difflib.get_close_matches(name, candidates, SUGGESTIONS, likeness)
    ratios = [difflib.SequenceMatcher(None, candidate, name).ratio() for candidate in best]
    return [candidate for candidate, ratio in zip(best, ratios, strict=True) if ratio > ratios[0] - TIE]


def last_part(key: str) -> str:
    """What follows the last dot."""
    return key.rpartition(".")[2]


def expected(cls: Any, field: str) -> str | None:
    """What a dataclass's field takes, in words; None if `cls` is no dataclass or has no such field."""
    hint = get_type_hints(cls).get(field) if is_dataclass(cls) else None
    return None if hint is None else _in_words(hint)


def _in_words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(argument) for argument in arguments)
    if hint is types.NoneType:
        return "null"
    if origin is dict:
        return "a mapping"
    if origin in (list, tuple):
        return f"a list of {_in_words(arguments[0])}" if arguments else "a list"
    if is_dataclass(hint):
        return "a section of settings"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(hint.__members__)}"
    if hint is Path:
        return "a path"
    return str(getattr(hint, "__name__", hint))
