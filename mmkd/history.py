"""Reads what a training logged, in mmengine's format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class LogReader:
    """Follows a training's log and reads each row once.

    Args:
        folder: the work dir.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}  # file → bytes

    def new_rows(self) -> Iterator[dict[str, Any]]:
        """The complete rows of ``*/vis_data/scalars.json`` since the last call, run by run, as written."""
        for path in sorted(self._folder.glob("*/vis_data/scalars.json")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                lines, end, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(lines + end)
            for line in lines.splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row


def logged_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """All complete rows of a training, run by run, in the order they were written.

    Args:
        folder: the work dir.
    """
    return LogReader(folder).new_rows()
