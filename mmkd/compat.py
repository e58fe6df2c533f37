"""What today's PyTorch needs of mmengine, and one clear error where it is unfit.

Since torch 2.6 `torch.load` reads weights only. mmengine (0.10.7) writes its
message hub, `HistoryBuffer` objects and NumPy arrays, into every checkpoint and
so can no longer read its own files. mmkd itself reads checkpoints by
`mmkd.checkpoints`, on any torch; for others who call `torch.load`, importing mmkd
allows exactly what mmengine writes. Any other pickle stays refused.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from mmkd.checkpoints.allowed import history_buffer_method

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
    return [*names, (history_buffer_method, "builtins.getattr")]


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read what mmengine writes.

    Does nothing before torch 2.6, which reads any pickle unless told otherwise.
    """
    if torch_loads_weights_only():
        torch.serialization.add_safe_globals(mmengine_safe_globals())


def torch_loads_weights_only() -> bool:
    """Whether this torch reads weights only unless told otherwise (2.6)."""
    major, minor = re.match(r"(\d+)\.(\d+)", torch.__version__).groups()  # type: ignore[union-attr]
    return (int(major), int(minor)) >= (2, 6)


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
    """Make mmengine read checkpoints as data, find ``mmkd::`` configs, and survive an unfit torchvision."""
    from mmengine.config.utils import MODULE2PACKAGE

    from mmkd.checkpoints.loaders import register_loaders
    from mmkd.torchvision import may_be_unfit, survive

    allow_mmengine_checkpoints()
    register_loaders()
    if may_be_unfit():
        survive()
    MODULE2PACKAGE.setdefault("mmkd", "mmkd.recipes")
