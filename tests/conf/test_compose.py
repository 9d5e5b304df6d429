"""Every file under conf/ composes into the typed configuration of the command that it says it is for.

A command's own file (conf/*.yaml) and a complete run (conf/experiment/**) open with lines such as

    # Command:  vilau train-tower experiment=scenes
    # Time:     2 minutes
    # Machine:  2 CPU cores
    # Expected: PSNR 27 dB

of which a command's own file needs the first alone.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vilau_common.config import config_to_yaml
from vilau_unified_lm.cli_verbs import VERBS

CONF = Path(__file__).parents[2] / "conf"
COMMANDS = sorted(CONF.glob("*.yaml"))
EXPERIMENTS = sorted(CONF.glob("experiment/**/*.yaml"))
VERB_OF = {verb.name: verb for verb in VERBS}


def header(file: Path) -> dict[str, str]:
    """What the opening comment says: {"Command": "vilau ...", ...}."""
    found = {}
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        if match := re.fullmatch(r"#\s*(\w+):\s+(.+)", line):
            found[match[1]] = match[2]
    return found


def name(file: Path) -> str:
    return str(file.relative_to(CONF))


def test_every_command_has_its_file() -> None:
    assert {f"{verb.config}.yaml" for verb in VERBS} == {file.name for file in COMMANDS}


@pytest.mark.parametrize("file", COMMANDS + EXPERIMENTS, ids=name)
def test_file_composes_as_its_header_says(file: Path) -> None:
    said = header(file)
    assert "Command" in said, f"{name(file)} must open with '# Command:  vilau ...'"
    program, verb, *overrides = shlex.split(said["Command"])
    assert program == "vilau"
    config = VERB_OF[verb].load(overrides, CONF)
    assert "???" not in config_to_yaml(config)
    if file in COMMANDS:
        assert file.stem == VERB_OF[verb].config
    else:
        assert any(file == CONF / f"{override.replace('=', '/', 1)}.yaml" for override in overrides)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=name)
def test_experiment_says_what_to_expect(file: Path) -> None:
    assert {"Command", "Time", "Machine", "Expected"} <= header(file).keys()
