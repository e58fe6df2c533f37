"""Whether the packages that mmkd stands on are fit, and configs by the names that mmengine gives them."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

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
