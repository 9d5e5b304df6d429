"""From composed nodes to objects of the schema's dataclasses, and from a schema to the nodes it starts from."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Collection
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from vilau_common.errors import UserError

T = TypeVar("T")

SCALARS = (bool, int, float, str)


def schema_node(schema: type, kinds: Collection[type]) -> DictConfig:
    """The node of a dataclass, with its required sections laid open, so that their keys are known one by one.

    kinds: the dataclasses that a group chooses from. A required section of a type that one of them derives from
    stays open for the choice.
    """
    node = OmegaConf.structured(schema)
    assert isinstance(node, DictConfig)
    bases = {base for kind in kinds for base in kind.__mro__[1:]}
    _open_sections(node, bases)
    return node


def _open_sections(node: DictConfig, bases: Collection[type]) -> None:
    for name in list(node):
        child = node._get_node(name)
        if not isinstance(child, DictConfig):
            continue
        section = child._metadata.ref_type
        if child._is_missing() and dataclasses.is_dataclass(section) and section not in bases:
            node[name] = OmegaConf.structured(section)
            child = node._get_node(name)
            assert isinstance(child, DictConfig)
        if is_laid_open(child):
            _open_sections(child, bases)


def is_laid_open(node: DictConfig) -> bool:
    """Whether the node itself holds entries, being neither ??? nor null nor a reference to another."""
    return not (node._is_missing() or node._is_none() or node._is_interpolation())


def check_names(node: DictConfig, key: str = "") -> None:
    """Raise a UserError for a name that Hydra let in (`+name=…`) or took out (`~name`) against the dataclasses."""
    schema = OmegaConf.get_type(node)
    prefix = f"{key}." if key else ""
    if dataclasses.is_dataclass(schema):
        fields = [field.name for field in dataclasses.fields(schema) if field.init]
        for name in node:
            if name not in fields:
                raise UserError(f"{prefix + str(name)} is not a setting, and none can be added there")
        for name in fields:
            if name not in node and not OmegaConf.is_missing(node, name):
                raise UserError(f"{prefix}{name} is a setting, which cannot be removed; give it a value")
    for name in node:
        child = node._get_node(name)
        if isinstance(child, DictConfig) and is_laid_open(child):
            check_names(child, prefix + str(name))


def build(node: DictConfig, schema: type[T], key: str = "") -> T:
    """The object that `node` describes: of the node's own dataclass, which derives from `schema`.

    UserError: a value is not of the field's type, or the dataclass refuses the values (UserError or ValueError).
    """
    chosen = OmegaConf.get_type(node)
    if chosen is None or not issubclass(chosen, schema):
        raise UserError(f"{key or 'the configuration'} names no schema: its defaults must begin with one")
    prefix = f"{key}." if key else ""
    hints = get_type_hints(chosen)
    fields = [field.name for field in dataclasses.fields(chosen) if field.init]  # type: ignore[arg-type]
    values = {name: _value(node, name, hints[name], prefix + name) for name in fields}
    try:
        return chosen(**values)
    except (UserError, ValueError) as error:
        # The class names its own field, but cannot know where it stands in this configuration.
        where = "" if not key or key in str(error) else f" (in {key})"
        raise UserError(f"{error}{where}") from error


def _value(parent: DictConfig | ListConfig, name: Any, hint: Any, key: str) -> Any:
    value = parent[name]  # resolves interpolations
    hint = _without_none(hint)
    arguments = get_args(hint)
    if isinstance(value, DictConfig):
        kind = OmegaConf.get_type(value)
        if dataclasses.is_dataclass(kind):
            return build(value, kind, key)
        if hint in SCALARS:
            raise UserError(f"{key} expects {hint.__name__}, got a mapping")
        entry_hint = arguments[1] if arguments else Any
        return {entry: _value(value, entry, entry_hint, key + "." + str(entry)) for entry in value}
    if isinstance(value, ListConfig):
        if hint in SCALARS:
            raise UserError(f"{key} expects {hint.__name__}, got a list")
        fixed = get_origin(hint) is tuple and Ellipsis not in arguments
        if fixed and len(value) != len(arguments):
            raise UserError(f"{key} expects {len(arguments)} values, got {len(value)}")
        item_hints = arguments if fixed else (arguments or (Any,))[:1] * len(value)
        items = [_value(value, i, item_hint, f"{key}[{i}]") for i, item_hint in enumerate(item_hints)]
        return tuple(items) if get_origin(hint) is tuple else items
    return value


def _without_none(hint: Any) -> Any:
    """X for `X | None`; anything else as it is."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    rest = [argument for argument in get_args(hint) if argument is not types.NoneType]
    return rest[0] if len(rest) == 1 else hint
