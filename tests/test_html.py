from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from mmkd import html


def test_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html.j2"
    page.write_text('{% extends "base.html.j2" %}{% block main %}<p>{{ name|twice }}</p>{% endblock %}')
    text = html.render(page, {"twice": lambda word: word * 2}, name="<&")
    assert text.startswith("<!doctype html>")
    assert "<p>&lt;&amp;&lt;&amp;</p>" in text
    assert "prefers-color-scheme: dark" in text
    with pytest.raises(UndefinedError, match="name"):
        html.render(page, {"twice": str})
