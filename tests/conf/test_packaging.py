"""Each package declares what it imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Programs that load a plug-in of ours: where it is imported, they are there.
HOSTS = {"lmms_eval"}
MEMBERS = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def declared(member: Path) -> set[str]:
    project = tomllib.loads((member / "pyproject.toml").read_text())["project"]
    extras = [entry for extra in project.get("optional-dependencies", {}).values() for entry in extra]
    names = [re.match(r"[\w.-]+", entry) for entry in [*project["dependencies"], *extras]]
    return {normal(match[0]) for match in names if match}


def imported(member: Path) -> Iterator[tuple[str, Path]]:
    """The top-level names that the member's code imports, with the file that does."""
    for file in member.glob("vilau_*/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from ((alias.name.split(".")[0], file) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield node.module.split(".")[0], file


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_imports_are_declared(member: Path) -> None:
    own = next(member.glob("vilau_*")).name
    distributions = packages_distributions()
    known = declared(member)
    missing = {
        f"{file.relative_to(ROOT)} imports {name}"
        for name, file in imported(member)
        if name not in sys.stdlib_module_names | HOSTS
        and name != own
        and not {normal(distribution) for distribution in distributions.get(name, [name])} & known
    }
    assert not missing


def test_requirements_pin_every_dependency_by_name() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]
    assert all(re.fullmatch(r"[\w.-]+==\S+( ; .+)?", pin) for pin in pins)  # no address, no path, no option
    pinned = {normal(pin.split("==")[0]) for pin in pins}
    members = {normal(f"vilau-{member.name}") for member in MEMBERS}
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]
    wanted = set().union(*(declared(member) for member in MEMBERS), map(normal, tools)) - members
    assert wanted <= pinned
