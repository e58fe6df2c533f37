"""HTML pages in one style, each a self-contained file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: Path, filters: dict[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """A page as one HTML text.

    Args:
        template: extends ``base.html.j2``, which has the style and the blocks ``title``, ``style``, ``main``.
        filters: name → filter for the template.
        values: the template's values; text is escaped, because names of variants and classes come from users.

    Raises:
        jinja2.UndefinedError: the template uses a value that is missing.

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
