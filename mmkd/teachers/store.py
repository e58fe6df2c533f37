"""Teacher outputs on disk: one safetensors file per entry, written once."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from mmengine.logging import print_log
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mmkd.durable import write_durably
from mmkd.errors import UserError

_SUFFIX, _UNFINISHED = ".safetensors", ".part"
_STALE_SECONDS = 3600.0  # a writer needs far less time for one file
# After writing this fraction of the limit, measure the folder again: others write to it too.
_RECOUNT = 0.02


class EntryStore:
    """Tensors by key, for any number of processes that share a file system.

    An entry is written under a temporary name, flushed to disk and renamed, so it is either complete or
    missing. Two writers of one key write the same content. Once the limit is reached or the disk is full,
    nothing more is stored; this is logged once.

    Args:
        root: the folder of all teachers' answers; the limit applies to it.
        name: this teacher's folder below it.
        max_bytes: the limit.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, root: Path, name: str, max_bytes: int) -> None:
        self.root, self.folder, self.max_bytes = root, root / name, max_bytes
        self.entries_written = self.bytes_written = 0
        self.full = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError("it is read-only")
        except OSError as error:
            raise UserError(
                "Cannot write the teacher cache.",
                expected=f"a folder at {self.folder}",
                found=f"{type(error).__name__}: {error}",
                remedy="set teacher.cache.dir to a writable folder",
            ) from error
        self._used = self._count()
        self._uncounted = 0

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry, on the CPU; ``None`` if missing or unreadable."""
        path = self._path(key)
        try:
            return dict(load_file(path))
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            print_log(
                f"the cached output {path} is corrupt and will be recomputed: {error}",
                "current",
                logging.WARNING,
            )
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> bool:
        """Store an entry; returns whether there was room."""
        if self.full:
            return False
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        if self._uncounted + len(data) > _RECOUNT * self.max_bytes:
            self._used, self._uncounted = self._count(), 0
        if self._used + len(data) > self.max_bytes:
            self._stop(f"it has reached its limit of {self.max_bytes / 1000000000.0:.3g} GB")
            return False
        path = self._path(key)
        unfinished = path.with_name(f"{uuid.uuid4().hex}{_UNFINISHED}")
        try:
            path.parent.mkdir(exist_ok=True)
            write_durably(path, data, unfinished)
        except OSError as error:
            self._stop(f"{type(error).__name__}: {error}")
            return False
        self._used += len(data)
        self._uncounted += len(data)
        self.entries_written += 1
        self.bytes_written += len(data)
        return True

    def describe(self, about: str) -> None:
        """Write a description of the entries into the folder."""
        path = self.folder / "about.json"
        if not path.exists():
            with contextlib.suppress(OSError):
                path.write_text(about + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob(f"*/*{_SUFFIX}"))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def _count(self) -> int:
        """Bytes below the root; also removes files left by killed writers."""
        total, now = 0, time.time()
        for folder, _, files in os.walk(self.root):
            for name in files:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):  # another process may have removed it
                    about = os.stat(path)
                    if name.endswith(_UNFINISHED) and now - about.st_mtime > _STALE_SECONDS:
                        os.unlink(path)
                        continue
                    total += about.st_size
        return total

    def _stop(self, why: str) -> None:
        self.full = True
        others = sorted(str(path) for path in self.root.iterdir() if path.is_dir() and path != self.folder)
        print_log(
            f"the teacher cache {self.folder} is full: {why}. Cached outputs are used, the rest "
            "is computed in every step. Raise teacher.cache.max_gb, store fewer priors with "
            "teacher.cache.top, "
            + (
                f"or delete outputs of other teachers: {', '.join(others)}"
                if others
                else "or free disk space"
            ),
            "current",
            logging.WARNING,
        )
