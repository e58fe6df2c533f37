"""What today's PyTorch needs of mmengine, and one clear error where it is unfit.

Since torch 2.6 `torch.load` reads weights only. mmengine (0.10.7) writes its
message hub, `HistoryBuffer` objects and NumPy arrays, into every checkpoint and
so can no longer read its own files. Importing mmkd allows exactly what mmengine
writes. Any other pickle stays refused.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from mmkd.errors import user_error

INSTALL_HINT = "run `make install` in a clone of mmkd, or see 'Install' in its README"


def check_environment() -> None:
    """Import mmengine, mmcv (with its operators) and mmdet 3.x.

    Raises:
        ImportError: one of them is missing or unfit; says which and the remedy.
    """
    for name in ("mmengine", "mmcv", "mmdet"):
        module = _import(name)
    if not module.__version__.startswith("3."):
        raise ImportError(
            f"mmkd needs MMDetection 3.x, but mmdet {module.__version__} is installed; {INSTALL_HINT}"
        )
    _import("mmcv.ops", " (mmcv was built without its operators, or for another torch)")


def _import(name: str, why: str = "") -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, AssertionError) as error:  # mmdet asserts its mmcv range
        raise ImportError(
            f"mmkd needs {name}, which does not import{why}: {error}\n"
            f"Remedy: {INSTALL_HINT}. Both mmdet with mmengine and mmcv, and the maintained "
            "forks onedl-mmdetection with onedl-mmengine and onedl-mmcv, are accepted."
        ) from error


def _history_buffer_method(owner: object, name: str) -> Callable[..., Any]:
    """Stand in for ``builtins.getattr`` while a checkpoint is read.

    A pickled `HistoryBuffer` names its statistics methods through ``getattr``,
    which as such would open every attribute of every allowed class.
    """
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise ValueError(f"refused getattr({owner!r}, {name!r}) in a checkpoint")
    method: Callable[..., Any] = getattr(HistoryBuffer, name)
    return method


def mmengine_safe_globals() -> list[Any]:
    """What mmengine's own checkpoints hold beyond tensors and plain containers."""
    from mmengine.logging import HistoryBuffer

    core = importlib.import_module(
        "numpy._core.multiarray" if np.__version__[0] > "1" else "numpy.core.multiarray"
    )
    numeric = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdFDUS"]
    names: list[Any] = [HistoryBuffer, np.ndarray, np.dtype, *dict.fromkeys(numeric)]
    for package in ("numpy._core.multiarray", "numpy.core.multiarray"):
        names += [(core._reconstruct, f"{package}._reconstruct"), (core.scalar, f"{package}.scalar")]
    return [*names, (_history_buffer_method, "builtins.getattr")]


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read what mmengine writes.

    Does nothing before torch 2.6, where mmengine reads its files itself.
    """
    if torch_loads_weights_only():
        torch.serialization.add_safe_globals(mmengine_safe_globals())


def torch_loads_weights_only() -> bool:
    """Whether this torch reads weights only unless told otherwise (2.6)."""
    major, minor = re.match(r"(\d+)\.(\d+)", torch.__version__).groups()  # type: ignore[union-attr]
    return (int(major), int(minor)) >= (2, 6)


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a checkpoint file; registered as mmengine's loader of local paths.

    Args:
        filename: path of the file.
        map_location: as for `torch.load`.

    Returns:
        What the file holds.

    Raises:
        UserError: the file is missing, truncated, no checkpoint, or holds
            objects that are not data.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        nearby = sorted(p.name for p in path.parent.glob("*.pth"))[:10] if path.parent.is_dir() else []
        raise user_error(
            "The checkpoint file does not exist.",
            expected=f"a file at {path}",
            found=f"in its folder: {', '.join(nearby)}" if nearby else f"no checkpoint in {path.parent}",
            remedy="correct the path",
        )
    try:
        return torch.load(path, map_location=map_location)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> Exception:
    refused = re.search(
        r"Unsupported global: GLOBAL (\S+)|unsupported GLOBAL (\S+)|Unsupported class (\S+)"
        r"|unrecognized function (.+)|refused (getattr.+) in a|Can only .+ but got (.+)",
        str(error),
    )
    if refused:
        found = f"`{next(filter(None, refused.groups()))}`"
        return user_error(
            f"The checkpoint {path} was refused: it holds more than data, and reading it could run code.",
            expected="tensors, plain containers and what mmengine itself writes",
            found=found,
            remedy="if you trust where the file comes from, allow that name with "
            "`torch.serialization.add_safe_globals([…])` in a module listed in `custom_imports`, "
            "or set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 for this one command",
        )
    return user_error(
        f"The checkpoint {path} cannot be read.",
        expected="a file written by torch.save",
        found=f"{path.stat().st_size} bytes that end early or are something else "
        f"({type(error).__name__}: {(str(error).strip() or 'no more said').splitlines()[0]})",
        remedy="download or copy it again and compare its size or hash with the source",
    )


def load_config(name: str | Path) -> Any:
    """Read a config file, or a ``package::`` name, which mmengine takes in ``_base_`` only.

    Args:
        name: a path, or a name like ``mmdet::atss/atss_r50_fpn_1x_coco.py``.

    Returns:
        The `mmengine.Config`.
    """
    from mmengine.config import Config
    from mmengine.hub import get_config

    return get_config(str(name)) if "::" in str(name) else Config.fromfile(name)


def adapt_mmengine() -> None:
    """Make mmengine read its own checkpoints and find ``mmkd::`` configs."""
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.runner import CheckpointLoader

    allow_mmengine_checkpoints()
    CheckpointLoader.register_scheme("", load_from_local, force=True)
    MODULE2PACKAGE.setdefault("mmkd", "mmkd.recipes")
