"""HTML pages of one style, each a single file that needs no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: Path, filters: dict[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """A page as one HTML text.

    Args:
        template: it extends ``base.html.j2``, which has the style and blocks ``title``, ``style``, ``main``.
        filters: for the template, by name.
        values: what the template shows; text in it is escaped, since names of variants and classes come from
            users.

    Raises:
        jinja2.UndefinedError: the template shows a value that was not given.

    Example:
        >>> page = Path("page.html.j2")
        >>> _ = page.write_text('{% extends "base.html.j2" %}{% block main %}<p>{{ name }}</p>{% endblock %}')
        >>> "<p>a &lt; b</p>" in render(page, name="a < b")
        True
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(template.name).render(**values)
