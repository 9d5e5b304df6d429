"""Templates of pages; everything that they show is escaped, and what they lack is an error."""

from __future__ import annotations

from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined


def rendered(template: str, values: Mapping[str, object]) -> str:
    """The HTML of templates/<template> with these values."""
    environment = Environment(
        loader=PackageLoader("vilau_common.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
