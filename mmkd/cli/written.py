"""List the files that a command has written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process

from mmkd.terminal import Terminal

# Path pattern below the work dir → description; the first match counts, and an empty one hides the file.
_KINDS = {
    "best_*.pth": "best checkpoint",
    "interrupted.pth": "state to resume from",
    "*.pth": "checkpoint",
    "last_checkpoint": "",  # contains a checkpoint's name
    "metrics_val_*.json": "last and best metrics",
    "*/vis_data/scalars.json": "losses and metrics by step",
    "*/vis_data/events.out.tfevents*": "TensorBoard",
    "*/vis_data/wandb/*": "W&B",
    "*/*.log": "log",
    "*/vis_data/config.py": "",
    "*/vis_data/*.json": "",  # the same as scalars.json
    "*/*.json": "metrics",
    "*.py": "config",
}
_SLACK = 2.0  # tolerance in seconds for a file system's clock


def files_since(folder: Path, began: float) -> dict[str, list[Path]]:
    """Files by description, in a fixed order; other files are listed by folder.

    Args:
        folder: the work dir.
        began: start time as `time.time`; older files are left out.
    """
    found: dict[str, list[Path]] = {kind: [] for kind in _KINDS.values()}
    for path in _written(folder, began):
        below = path.relative_to(folder).as_posix()
        kind = next((kind for name, kind in _KINDS.items() if fnmatch(below, name)), None)
        if kind is None or kind == "W&B":
            kind, path = kind or "other files", path.parent
        if path not in found.setdefault(kind, []):
            found[kind].append(path)
    return {kind: paths for kind, paths in found.items() if kind and paths}


def tell_of_files(terminal: Terminal, runner: Any, began: float, **more: str | None) -> None:
    """Print the paths of all files of a run, and the number of library warnings in its log.

    Args:
        terminal: where to print.
        runner: the runner of a finished run.
        began: start time as `time.time`.
        more: description → path outside the work dir.
    """
    if not is_main_process():
        return
    found = files_since(Path(runner.work_dir), began)
    found |= {kind: [Path(path)] for kind, path in more.items() if path is not None}
    width = max(map(len, found), default=0)
    for kind, paths in found.items():
        paths = sorted(paths, key=lambda path: path.stat().st_mtime)
        told = str(_from_here(paths[0])) + (f" … {paths[-1].name} ({len(paths)})" if len(paths) > 1 else "")
        if kind == "log" and terminal.hidden:
            told += f" (with {terminal.hidden} library warnings)"
        terminal.say(f"{kind:<{width}}  {told}")


def _from_here(path: Path) -> Path:
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _written(folder: Path, began: float) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in sorted(names)):
            if path.is_file() and path.stat().st_mtime > began - _SLACK:
                yield path
