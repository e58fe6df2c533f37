"""Reads local checkpoint files, with a clear error for each kind of failure."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from mmkd.checkpoints.allowed import DamagedError, RefusedError, RefusedNameError
from mmkd.checkpoints.names import verify
from mmkd.checkpoints.reader import read
from mmkd.errors import UserError

TRUST = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def read_file(path: Path, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint, verified by the hash in its name.

    Args:
        path: the file.
        map_location: as in `mmkd.checkpoints.reader.read`.

    Raises:
        UserError: the file is missing or truncated, does not match the hash in its name, is not a checkpoint,
            or contains objects that are not data.
    """
    path = path.expanduser()
    if not path.is_file():
        raise _missing(path)
    verify(path)
    try:
        if _trusted():
            return checked(torch.load(path, map_location=map_location, weights_only=False), str(path))
        with path.open("rb") as file:
            return checked(read(file, map_location), str(path))
    except UserError:
        raise
    except Exception as error:
        raise unreadable(str(path), path.stat().st_size, error) from error


def read_bytes(content: bytes, name: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint from another storage than a local disk; as `read_file`."""
    try:
        if _trusted():
            loaded = torch.load(io.BytesIO(content), map_location=map_location, weights_only=False)
            return checked(loaded, name)
        return checked(read(io.BytesIO(content), map_location), name)
    except UserError:
        raise
    except Exception as error:
        raise unreadable(name, len(content), error) from error


def checked(content: Any, name: str) -> dict[str, Any]:
    """Return a file's content if it is a dict with weights by name.

    Raises:
        UserError: it is not.
    """
    if not isinstance(content, dict):
        raise UserError(
            f"The checkpoint {name} contains no named weights.",
            expected="a dict as written by torch.save(model.state_dict()) or mmengine",
            found=type(content).__name__,
            remedy="save the state_dict of the model",
        )
    weights = content.get("state_dict", content)
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
        found = type(weights).__name__
        raise UserError(
            f"The checkpoint {name} contains no named weights.",
            expected="a `state_dict` with parameter names as keys",
            found=found if not isinstance(weights, Mapping) else f"a {found} with non-string keys",
            remedy="save the state_dict of the model",
        )
    return content


def unreadable(name: str, size: int, error: Exception) -> UserError:
    """The error for an unreadable file."""
    if isinstance(error, RefusedError):
        allow = ""
        if isinstance(error, RefusedNameError) and hasattr(torch.serialization, "add_safe_globals"):
            allow = "allow that name with `torch.serialization.add_safe_globals([…])` in a module listed in "
            allow += "`custom_imports`, or "
        return UserError(
            f"Refusing to load checkpoint {name}: it contains more than data and could run code.",
            expected="tensors, plain containers and mmengine's own objects",
            found=f"`{error}`",
            remedy=f"if you trust the source of the file, {allow}set {TRUST}=1 for this command only",
        )
    text = (str(error).strip() or "no details").splitlines()[0][:300]
    if not isinstance(error, (DamagedError, BadZipFile)):
        text = f"a corrupt table of contents, {type(error).__name__}: {text}"
    return UserError(
        f"Cannot read checkpoint {name}.",
        expected="a file written by torch.save",
        found=f"{size} bytes, truncated or in another format ({text})",
        remedy="download or copy it again and compare its size or hash with the original",
    )


def _missing(path: Path) -> UserError:
    nearby = sorted(p.name for p in path.parent.glob("*.pth"))[:10] if path.parent.is_dir() else []
    return UserError(
        "Checkpoint file not found.",
        expected=f"a file at {path}",
        found=f"other files in its folder: {', '.join(nearby)}"
        if nearby
        else f"no checkpoint in {path.parent}",
        remedy="correct the path",
    )


def _trusted() -> bool:
    """Whether the user told torch to read any pickle; also before torch 2.6."""
    return os.environ.get(TRUST, "0").lower() in ("1", "y", "yes", "true")
