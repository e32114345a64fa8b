"""Pages of one file each, from the package's templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

from ltdd.engine.watching import units


def render(template: str, content: Mapping[str, Any]) -> str:
    """Return a page that asks for nothing else; names in it are escaped."""
    return _environment().get_template(template).render(content)


def chart_style() -> str:
    """Return the style sheet that a chart in a file of its own needs."""
    environment = _environment()
    parts = [environment.get_template(name).render() for name in ("colours.css.j2", "chart.css.j2")]
    return " ".join("".join(parts).split())


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ltdd.results.pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"duration": units.duration, "size": units.size}
    return environment
