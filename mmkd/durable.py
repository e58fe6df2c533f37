"""Atomic writes: files written by mmengine survive a kill, a full disk and a power cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage

from mmengine.fileio import LocalBackend, register_backend
from mmengine.fileio.io import backend_instances

from mmkd.errors import UserError


class DurableLocalBackend(LocalBackend):
    """mmengine's local files, each written under another name, synced and renamed.

    Whoever reads meanwhile finds the old file or the new one. After a kill a
    ``<name>.tmp`` may be left, which the next writing of that name replaces.
    """

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write bytes.

        Raises:
            UserError: the file cannot be written; what was there before still is.
        """
        path = Path(filepath)
        with _said(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Write text; as `put`."""
        self.put(obj.encode(encoding), filepath)


def write_durably(path: Path, content: bytes | memoryview, part: Path | None = None) -> None:
    """Replace a file with ``content``, or leave it as it is.

    Args:
        path: the file.
        content: what is to be in it.
        part: where it is written first, in the same folder; one of its own for each of several writers.

    Raises:
        OSError: it cannot be written.
    """
    part = part or path.with_name(f"{path.name}.tmp")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # not on Windows; the new name is on the disk too
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def use_durable_files() -> None:
    """Let mmengine write all its local files so from now on, in this process; the tools and hooks call it."""
    register_backend("local", DurableLocalBackend, force=True, prefixes="")
    for key, kept in list(backend_instances.items()):
        if type(kept) is LocalBackend:
            del backend_instances[key]


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = path.parent
        while not folder.is_dir():
            folder = folder.parent
        raise UserError(
            f"Cannot write {path}.",
            expected="a writable folder with enough space",
            found=f"{error.strerror or error}; {disk_usage(folder).free / 2**20:.0f} MiB free",
            remedy="free some space or choose another --work-dir; existing files are intact, use "
            "--resume to continue from the last checkpoint",
        ) from error
