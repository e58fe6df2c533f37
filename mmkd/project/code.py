"""Writes values and comments as the text of a config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from keyword import iskeyword
from textwrap import fill
from typing import Any


class Code(str):
    """Text to write into a config unquoted."""


def code(value: Any, indent: int = 0) -> str:
    """A value as Python code, with one entry per line if it is long; dicts as ``dict(…)`` if keys allow."""
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping) and not all(_is_name(key) for key in value):
        entries, ends = [f"{code(key)}: {code(each, indent + 4)}" for key, each in value.items()], ("{", "}")
    elif isinstance(value, Mapping):
        entries, ends = [f"{key}={code(each, indent + 4)}" for key, each in value.items()], ("dict(", ")")
    elif isinstance(value, (list, tuple)):
        entries = [code(each, indent + 4) for each in value]
        ends = ("[", "]") if isinstance(value, list) else ("(", ",)" if len(value) == 1 else ")")
    else:
        return repr(value)
    line = ends[0] + ", ".join(entries) + ends[1]
    if len(line) + indent <= 88 and "\n" not in line:
        return line
    space = " " * (indent + 4)
    return ends[0] + "\n" + "".join(f"{space}{each},\n" for each in entries) + " " * indent + ends[1][-1]


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier() and not iskeyword(key)


def comment(text: str) -> list[str]:
    """A comment, wrapped into lines."""
    return fill(text, 100, initial_indent="# ", subsequent_indent="# ").splitlines()
