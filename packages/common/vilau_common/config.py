"""Configuration: YAML files and command-line overrides in, one typed dataclass out.

Hydra composes; this module puts typed schemas around it and turns every mistake into one sentence.

How to write a command's configuration

1.  A keyword-only dataclass beside the code that it configures, whose sections are dataclasses themselves. A
    field without a default must be given. Types are those of OmegaConf's structured configs (an Enum, no
    Literal); a field declared as a tuple gets a tuple.

        @dataclass(kw_only=True)
        class TrainConfig:
            quantizer: QuantizerConfig  # the group `quantizer` chooses its kind
            training: TrainingConfig
            seed: int = 0

2.  `conf/train.yaml`, which begins with the schema. `<name>_schema` exists for the root, and in each group of
    `groups` an `<option>_schema` for every kind:

        defaults:
          - train_schema
          - quantizer: ema
          - _self_
          - experiment: null
        training:
          steps: 1000

3.  For a child that comes in kinds: one dataclass a kind, each derived from the field's type; the field has no
    default. `conf/quantizer/ema.yaml` begins with its schema and states what it chooses:

        defaults: [ema_schema, _self_]
        decay: 0.99

    Several files may share a schema. A group is mounted elsewhere in Hydra's way: `quantizer@tower.quantizer: ema`.

4.  A complete named run, `conf/experiment/fast.yaml`:

        # @package _global_
        defaults:
          - override /quantizer: shared
        training:
          steps: 10

5.  load_config("train", ["experiment=fast", "seed=1"], TrainConfig, groups={"quantizer": {"ema": EmaConfig, ...}})

An override sets what exists, `key=value`, or chooses, `group=option`; `+key={name: value}` adds an
entry to a `dict` field.

A sweep needs nothing new here: inside `registered(...)`, the function that a Hydra multirun calls gives the DictConfig
it gets to `typed_config` (vilau_vision_tower.sweep).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from vilau_common.config_errors import SCHEMA_SUFFIX, Request, explain
from vilau_common.config_names import KnownNames
from vilau_common.config_objects import build, check_names, schema_node
from vilau_common.errors import UserError

T = TypeVar("T")

SchemaGroups = Mapping[str, Mapping[str, type]]
"""Group -> option -> the dataclass of that kind, as {"quantizer": {"ema": EmaConfig}}."""

CONF = "conf"
MARKERS = (".vilau_conf", "train_tower.yaml")
"""A folder conf/ is this project's if it holds one of these."""

HYDRA_VERSION_BASE = "1.3"


def conf_directory(explicit: Path | None = None) -> Path:
    """The folder of the YAML files, absolute.

    `explicit` where given; else the nearest conf/ at or above the working directory; else the one beside the
    packages of this checkout. UserError: there is none.
    """
    if explicit is not None:
        if not explicit.is_dir():
            raise UserError(f"the configuration directory {explicit} does not exist")
        return explicit.resolve()
    here = Path.cwd()
    checkout = Path(__file__).resolve().parents[3]
    for place in (here, *here.parents, checkout):
        if any((place / CONF / marker).is_file() for marker in MARKERS):
            return place / CONF
    raise UserError(f"there is no directory {CONF}/ at or above {here}; name one with --config-dir")


def load_config(
    name: str,
    overrides: Sequence[str],
    schema: type[T],
    *,
    groups: SchemaGroups | None = None,
    directory: Path | None = None,
) -> T:
    """Compose <name>.yaml with `overrides` and return it as an object of the dataclass `schema`.

    groups: the kinds of every child that comes in kinds. directory: see `conf_directory`.
    UserError: one sentence on the first mistake found in the overrides or the files.
    """
    for override in overrides:
        if override.lstrip("+~").startswith("hydra"):
            raise UserError(
                f"{override} would change nothing: Hydra's own settings are for sweeps and for jobs of hydra/launcher=…"
            )
    place = conf_directory(directory)
    with registered(name, schema, groups):
        request = Request(name, place, overrides, lambda: _known_names(name, place, overrides))
        try:
            composed = _compose(name, place, overrides)
        # The schemas were accepted above: what is raised now, of whatever type, the files or the overrides caused.
        except Exception as error:
            raise UserError(explain(error, request)) from error
        try:
            return typed_config(composed, schema)
        except OmegaConfBaseException as error:
            raise UserError(explain(error, request)) from error


def explained(error: Exception, name: str, directory: Path, overrides: Sequence[str]) -> str:
    """One sentence on what Hydra refused while it composed <name>.yaml of `directory` with `overrides`."""
    return explain(
        error, Request(name, directory, overrides, lambda: _known_names(name, directory, overrides))
    )


def typed_config(composed: DictConfig, schema: type[T]) -> T:
    """The object of the dataclass `schema` that a composed configuration describes.

    UserError: values are missing, or a dataclass refuses those it gets. OmegaConf's error: an interpolation fails.
    """
    check_names(composed)
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        lack = "has no value" if len(missing) == 1 else "have no values"
        raise UserError(f"{', '.join(missing)} {lack}; set {missing[0]}=…")
    return build(composed, schema)


@contextmanager
def registered(name: str, schema: type, groups: SchemaGroups | None = None) -> Iterator[None]:
    """Inside the block Hydra knows `<name>_schema` and every `<group>/<option>_schema`; afterwards all is as before."""
    groups = groups or {}
    kinds = [kind for options in groups.values() for kind in options.values()]
    Plugins.instance()  # these store configurations of their own on first use, which must outlast the block
    store = ConfigStore.instance()
    before = deepcopy(store.repo)
    try:
        store.store(name=name + SCHEMA_SUFFIX, node=schema_node(schema, kinds))
        for group, options in groups.items():
            for option, kind in options.items():
                store.store(group=group, name=option + SCHEMA_SUFFIX, node=schema_node(kind, kinds))
        yield
    finally:
        store.repo = before


def config_to_dict(config: Any) -> dict[str, Any]:
    """A configuration object as nested dicts and lists of plain values: paths as strings, enums by name."""
    plain = _plain(config)
    assert isinstance(plain, dict)
    return plain


def config_to_yaml(config: Any) -> str:
    """A configuration object as YAML, keys in the order of the fields."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value


def _compose(name: str, place: Path, overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    with initialize_config_dir(str(place), version_base=HYDRA_VERSION_BASE):
        return compose(name, list(overrides), return_hydra_config=with_hydra)


def _known_names(name: str, place: Path, overrides: Sequence[str]) -> KnownNames:
    """The names there are under the choices that `overrides` make; without them where that cannot be composed."""
    try:
        plain = _compose(name, place, [], with_hydra=True)
    except Exception:  # the files themselves are at fault: the schema alone tells the names
        schema = ConfigStore.instance().load(f"{name}{SCHEMA_SUFFIX}.yaml").node
        return KnownNames.of(schema, choices=[])
    choices = [choice for choice in plain.hydra.runtime.choices if not choice.startswith("hydra/")]
    choosing = [override for override in overrides if override.partition("=")[0] in choices]
    composed = plain
    if choosing:
        with suppress(Exception):  # a choice may be what is at fault
            composed = _compose(name, place, choosing, with_hydra=True)
    with open_dict(composed):
        del composed["hydra"]
    return KnownNames.of(composed, choices)
