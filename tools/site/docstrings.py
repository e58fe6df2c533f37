"""griffe extension: converts reStructuredText in docstrings to Markdown and MathML."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

import griffe
from latex2mathml.converter import convert

# A directive and its indented block; an inline role, possibly over several lines.
_BLOCK = re.compile(
    r"^(?P<indent> *)\.\. math::(?P<first>.*)\n(?P<rest>(?:(?P=indent) +.*\n|\s*\n)*)", re.MULTILINE
)
_INLINE = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:func|class|meth|mod|attr):`~?([^`]+)`")
# The docstring parser recognises doctests only below the plural.
_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
_LITERAL = re.compile(r"``([^`]+)``")


def _formula(latex: str, display: str) -> str:
    mathml = convert(" ".join(latex.split()), display=display)
    return re.sub(r"([_*`\\])", lambda match: f"&#{ord(match[0])};", mathml)


def _block(match: re.Match[str]) -> str:
    latex = match["first"] + "\n" + dedent(match["rest"])
    return f'{match["indent"]}<div class="formula">{_formula(latex, "block")}</div>\n\n'


def as_markdown(text: str) -> str:
    """Convert one of mmkd's docstrings to Markdown."""
    text = _EXAMPLE.sub(r"\1Examples:", _BLOCK.sub(_block, text + "\n"))
    text = _INLINE.sub(lambda match: _formula(match[1], "inline"), text)
    return _LITERAL.sub(r"`\1`", _ROLE.sub(r"`\1`", text)).rstrip("\n")


class Docstrings(griffe.Extension):
    """Rewrites every loaded docstring."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Rewrite the object's docstring."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
