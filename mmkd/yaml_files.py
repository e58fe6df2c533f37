"""Reads YAML files that people write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmkd.errors import UserError


def read_mapping(path: Path, what: str, example: str) -> Mapping[str, Any]:
    """The content of a YAML file.

    Args:
        path: the file, in UTF-8.
        what: what it is, for messages: ``plan``.
        example: what it should be, like ``a YAML file in Ultralytics format``.

    Raises:
        UserError: the file cannot be read, or is no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        problem = None if isinstance(content, Mapping) else f"it contains {content!r:.80}"
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if problem is not None:
        raise UserError(
            f"Cannot read {what}.",
            expected=f"{example}, a mapping of names to values",
            found=f"{path} ({problem})",
            remedy="correct the path or the file",
        )
    found: Mapping[str, Any] = content
    return found
