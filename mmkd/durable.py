"""Atomic writes: a file is complete or missing, even after a kill, a full disk or a power cut."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import IO, Any

from mmengine.fileio import LocalBackend, register_backend
from mmengine.fileio.io import backend_instances

from mmkd.errors import UserError


class DurableLocalBackend(LocalBackend):
    """mmengine's local files, each written under a temporary name, synced and renamed.

    Readers see the old file or the new one. A kill may leave ``<name>.tmp``, which the next write to that
    name replaces.
    """

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write bytes.

        Raises:
            UserError: the file cannot be written; the old one is unchanged.
        """
        write_file(
            Path(filepath),
            obj,
            "free some space or choose another --work-dir; existing files are intact, use "
            "--resume to continue from the last checkpoint",
        )

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Write text; as `put`."""
        self.put(obj.encode(encoding), filepath)


@contextmanager
def durable_file(path: Path, part: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write to; it replaces ``path`` at the end of the block; after an error ``path`` is unchanged.

    Args:
        path: the file.
        part: the temporary file, in the same folder; different for each of several writers.

    Raises:
        OSError: the file cannot be written.
    """
    part = part or path.with_name(f"{path.name}.tmp")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # not on Windows; also syncs the new name
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_durably(path: Path, content: bytes | memoryview, part: Path | None = None) -> None:
    """Replace a file with ``content``, or leave it unchanged; arguments and errors as in `durable_file`."""
    with durable_file(path, part) as file:
        file.write(content)


def write_file(
    path: Path, content: bytes | memoryview, remedy: str = "free some space, or choose another folder"
) -> None:
    """As `write_durably`, but creates the folder and raises a readable error.

    Args:
        path: the file.
        content: the new content.
        remedy: the error's remedy.

    Raises:
        UserError: the file cannot be written; the old one is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, content)
    except OSError as error:
        folder = path.parent
        while not folder.is_dir():
            folder = folder.parent
        raise UserError(
            f"Cannot write {path}.",
            expected="a writable folder with enough space",
            found=f"{error.strerror or error}; {disk_usage(folder).free / 2**20:.0f} MiB free",
            remedy=remedy,
        ) from error


def write_json(path: Path, content: Any, *, indent: int | None = 2, **options: str) -> None:
    """Write JSON with `write_file`; without ``indent`` as compactly as possible."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=False)
    write_file(path, f"{text}\n".encode(), **options)


def use_durable_files() -> None:
    """From now on, make mmengine in this process write all local files this way; used by tools and hooks."""
    register_backend("local", DurableLocalBackend, force=True, prefixes="")
    for key, kept in list(backend_instances.items()):
        if type(kept) is LocalBackend:
            del backend_instances[key]
