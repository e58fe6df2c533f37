"""Atomic writes: a file that is there is whole, also after a kill, a full disk and a power cut."""

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
    """mmengine's local files, each written under another name, synced and renamed.

    Whoever reads meanwhile finds the old file or the new one. After a kill a
    ``<name>.tmp`` may be left, which the next writing of that name replaces.
    """

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write bytes.

        Raises:
            UserError: the file cannot be written; what was there before still is.
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
    """A file to write to; at the end of the block it replaces ``path``, after an error ``path`` is as before.

    Args:
        path: the file.
        part: where it is written first, in the same folder; one of its own for each of several writers.

    Raises:
        OSError: it cannot be written.
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
    if hasattr(os, "O_DIRECTORY"):  # not on Windows; the new name is on the disk too
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_durably(path: Path, content: bytes | memoryview, part: Path | None = None) -> None:
    """Replace a file with ``content``, or leave it as it is; arguments and errors as of `durable_file`."""
    with durable_file(path, part) as file:
        file.write(content)


def write_file(
    path: Path, content: bytes | memoryview, remedy: str = "free some space, or choose another folder"
) -> None:
    """As `write_durably`, in a folder that may not be there yet, with an error for people.

    Args:
        path: the file.
        content: what is to be in it.
        remedy: of the error.

    Raises:
        UserError: it cannot be written; what was there before still is.
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
    """Write JSON, by `write_file`; without ``indent`` in as few bytes as it takes."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=False)
    write_file(path, f"{text}\n".encode(), **options)


def use_durable_files() -> None:
    """Let mmengine write all its local files so from now on, in this process; the tools and hooks call it."""
    register_backend("local", DurableLocalBackend, force=True, prefixes="")
    for key, kept in list(backend_instances.items()):
        if type(kept) is LocalBackend:
            del backend_instances[key]
