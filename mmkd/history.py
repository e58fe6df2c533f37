"""Reads what a training logged, in mmengine's format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def logged_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of ``*/vis_data/scalars.json``, run by run, in the order they were written.

    Args:
        folder: the work dir. An incomplete line, for example one just being written, is skipped.
    """
    for file in sorted(folder.glob("*/vis_data/scalars.json")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row
