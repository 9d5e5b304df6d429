"""What went wrong while a configuration was composed, told in one sentence.

Hydra and OmegaConf tell their errors over several lines, in terms of their own classes, with advice that would
lead away from the typed schema ("to append to your config use +…"). Here each kind is told by the key, the file
and the closest valid names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    ValidationError,
)

from vilau_common.config_names import KnownNames, closest, expected, fields_of, last_part

E = TypeVar("E", bound=BaseException)

SCHEMA_SUFFIX = "_schema"

# Hydra's own words, where it gives no attribute to read.
IN_FILE = re.compile(r"^In '(?P<file>[^']+)'")
OVERRIDDEN = re.compile(r"Could not override '(?P<key>[^']+)'")
REFERENCE = re.compile(r"Interpolation key '(?P<key>[^']+)' not found")
DELETED = re.compile(r"Could not delete (?:from config\. )?'(?P<key>[^'=]+)")


@dataclass(frozen=True)
class Request:
    """What was asked to be composed. names: the keys and choices there are, made only when a sentence needs them."""

    name: str
    directory: Path
    overrides: Sequence[str]
    names: Callable[[], KnownNames]

    def file(self, config_path: str) -> str:
        """How a file is called in a message: conf/experiment/fast.yaml."""
        return f"{self.directory.name}/{config_path}.yaml"

    def overridden(self) -> list[str]:
        """The key of each override, without its signs and value."""
        return [override.lstrip("+~").partition("=")[0] for override in self.overrides]

    def options(self, group: str) -> list[str]:
        """What a group's files offer; for the empty group, the commands' own files."""
        return sorted(path.stem for path in (self.directory / group).glob("*.yaml"))


def explain(error: Exception, request: Request) -> str:
    """One sentence on what made composing fail: where, what, and what would be right."""
    if isinstance(error, OverrideParseException):
        return _malformed(error.override)
    if isinstance(error, MissingConfigException):
        return _no_such_option(error, request)
    if broken := _first(error, yaml.MarkedYAMLError):
        return _broken_yaml(broken, request)
    if unknown := (_first(error, ConfigKeyError) or _first(error, ConfigAttributeError)):
        return _unknown_key(error, unknown, request)
    if interpolation := (_first(error, InterpolationResolutionError) or _first(error, GrammarParseError)):
        return _bad_reference(interpolation)
    if wrong := _first(error, ValidationError):
        return _wrong_value(error, wrong, request)
    return _by_words(error, request)


def _first(error: BaseException, kind: type[E]) -> E | None:
    """The outermost error of that kind among `error` and what it was raised from."""
    current: BaseException | None = error
    while current is not None and not isinstance(current, kind):
        current = current.__cause__ or current.__context__
    return current


def _source(error: Exception, request: Request) -> str:
    """The file at fault, if it is a file."""
    match = IN_FILE.match(str(error))
    return request.file(match["file"]) if match else ""


def _malformed(override: str) -> str:
    if "=" not in override and not override.startswith("~"):
        return f"{override!r} is no override: write key=value"
    return f"{override!r} cannot be read as key=value; check its brackets and quotes, and the key for signs"


def _no_such_option(error: MissingConfigException, request: Request) -> str:
    config_path = error.missing_cfg_file or request.name
    group, _, option = config_path.rpartition("/")
    if option.endswith(SCHEMA_SUFFIX):
        return f"{_source(error, request)} begins with the schema {config_path}, which {request.name} does not have"
    options = request.options(group)
    meant = closest(option, options)
    said = f"{group} has no option {option!r}" if group else f"{request.directory.name}/ has no {option}.yaml"
    if not options:
        return f"{said}: there is no {request.file(config_path)}"
    guess = f"; did you mean {_either(meant)}?" if meant else ""
    return f"{said} (there are {', '.join(options)}){guess}"


def _broken_yaml(error: yaml.MarkedYAMLError, request: Request) -> str:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return f"a file of {request.directory.name}/ is not YAML: {error.problem}"
    path = Path(mark.name)
    project = request.directory.parent
    shown = path.relative_to(project) if path.is_relative_to(project) else path
    return f"{shown}, line {mark.line + 1}, is not YAML: {error.problem}"


def _unknown_key(error: Exception, unknown: OmegaConfBaseException, request: Request) -> str:
    full_key = unknown.full_key or str(unknown.key)
    file = _source(error, request)
    # OmegaConf names the first part that is unknown; the override says what the whole key was to be.
    key = full_key if file else _whole_key(full_key, request)
    names = request.names()
    section = full_key.rpartition(".")[0]
    if file and file == request.file(f"{full_key}/{Path(file).stem}"):
        return f"{file} sets keys of the whole configuration, so it must open with the line '# @package _global_'"
    if section in names.mappings and not file:
        return _new_entry(full_key)
    known = [*fields_of(section, unknown.object_type), *names.keys, *names.choices]
    meant = closest(key, [candidate for candidate in known if not key.startswith(f"{candidate}.")])
    said = f"{file} sets {key}, which" if file else key
    guess = _guess_or_list(meant, [known_key for known_key in names.keys if "." not in known_key])
    return f"{said} is not a setting of {request.name}; {guess}"


def _whole_key(start: str, request: Request) -> str:
    """The overridden key that begins with the key `start`."""
    return next((key for key in request.overridden() if f"{key}.".startswith(f"{start}.")), start)


def _new_entry(key: str) -> str:
    section, _, name = key.rpartition(".")
    return f"{section} has no entry {name!r}; one is added with '+{section}={{{name}: …}}'"


def _wrong_value(error: Exception, wrong: ValidationError, request: Request) -> str:
    key = wrong.full_key or str(wrong.key)
    file = _source(error, request)
    wanted = expected(wrong.object_type, last_part(key))
    if wanted is None and not file:
        # OmegaConf cannot make an entry of a mapping of sections out of a part of it.
        for mapping in request.names().mappings:
            if any(f"{overridden}.".startswith(f"{mapping}.{key}.") for overridden in request.overridden()):
                return _new_entry(f"{mapping}.{key}")
    told = (
        f"{key}: {_first_line(wrong)}" if wanted is None else f"{key} expects {wanted}, got {_shown(wrong)}"
    )
    return f"{file}: {told}" if file else told


def _shown(wrong: ValidationError) -> str:
    """The refused value as YAML would write it."""
    if wrong.value is None or isinstance(wrong.value, bool):
        return {None: "null", True: "true", False: "false"}[wrong.value]
    return repr(wrong.value)


def _bad_reference(error: OmegaConfBaseException) -> str:
    key = error.full_key or "a setting"
    match = REFERENCE.search(str(error))
    if match:
        return f"{key} refers to ${{{match['key']}}}, which does not exist"
    return f"{key} holds a reference that cannot be followed: {_first_line(error)}"


def _by_words(error: Exception, request: Request) -> str:
    text = str(error)
    several = next((o for o in request.overrides if f"'{o}'" in text and "multirun" in text), None)
    if several is not None:
        key, _, values = several.partition("=")
        return f"{several} gives several values where one is due; a list is written {key}=[{values}]"
    if match := OVERRIDDEN.search(text) or DELETED.search(text):
        names = request.names()
        meant = closest(match["key"], names.choices) or closest(match["key"], names.keys)
        file = _source(error, request)
        said = f"{file} overrides {match['key']}, which" if file else match["key"]
        return f"{said} is nothing that {request.name} chooses; {_guess_or_list(meant, names.choices)}"
    for key, override in zip(request.overridden(), request.overrides, strict=True):
        if override.startswith("+") and key in request.names().choices:
            return f"{key} is chosen already: write {override[1:]}, without the plus sign"
        if override == f"{key}=null" and key in request.names().choices:
            return f"{override}: to choose nothing write ~{key}"
        if key in request.names().sections and key not in request.names().choices:
            return f"{override}: {key} is a section of settings, so set one of them, as {key}.name=value"
    return f"{_source(error, request) or request.file(request.name)} cannot be composed: {_first_line(error)}"


def _guess_or_list(meant: Sequence[str], there_are: Iterable[str]) -> str:
    return f"did you mean {_either(meant)}?" if meant else f"there are {', '.join(there_are)}"


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].strip() if text else type(error).__name__
