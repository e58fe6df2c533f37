"""Files that would run code, in each format that torch has written."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Touches:
    """Creates a file when it is unpickled by Python's own rules."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def write_zip(path: Path, content: Any) -> None:
    torch.save(content, path)


def write_legacy(path: Path, content: Any) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_pickle(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content))


def write_tar(path: Path, content: Any) -> None:
    """The layout of torch before 0.1.10."""
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as tar:
        for name, part in (("storages", 0), ("tensors", 0), ("pickle", content)):
            data = pickle.dumps(part)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


FORMATS: dict[str, Callable[[Path, Any], None]] = {
    "zip": write_zip,
    "legacy": write_legacy,
    "pickle": write_pickle,
    "tar": write_tar,
}
