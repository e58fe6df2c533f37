"""Checks that mmkd's dependencies are installed and compatible; resolves config names like ``mmdet::…``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from mmkd.errors import UserError, nearest

INSTALL_HINT = "run `make install` in a clone of mmkd, or see 'Install' in its README"


def check_environment() -> None:
    """Import mmengine, mmcv (with its operators) and mmdet 3.x.

    Raises:
        ImportError: one of them is missing or incompatible; says which and the remedy.
    """
    for name in ("mmengine", "mmcv", "mmdet"):
        module = _import(name)
    if not module.__version__.startswith("3."):
        raise ImportError(
            f"mmkd needs MMDetection 3.x, but mmdet {module.__version__} is installed; {INSTALL_HINT}"
        )
    _import("mmcv.ops", " (mmcv was built without its operators or for another torch version)")


def _import(name: str, why: str = "") -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, AssertionError) as error:  # mmdet asserts its mmcv range
        raise ImportError(
            f"mmkd needs {name}, which cannot be imported{why}: {error}\n"
            f"Remedy: {INSTALL_HINT}. Both mmdet with mmengine and mmcv, and the maintained "
            "forks onedl-mmdetection with onedl-mmengine and onedl-mmcv, are accepted."
        ) from error


def load_config(name: str | Path) -> Any:
    """Read a config file, or a ``package::`` name, which mmengine supports only in ``_base_``.

    Args:
        name: a path, or a name like ``mmdet::atss/atss_r50_fpn_1x_coco.py``.

    Returns:
        The `mmengine.Config`, without any ``type`` that mmengine would fail to write or read again: a class
        in a text config, or an unresolvable full name in a dumped pure-Python config.

    Raises:
        ImportError: a pure-Python config imports a name that its module does not have.
    """
    from mmengine.config import Config
    from mmengine.hub import get_config

    cfg = get_config(str(name)) if "::" in str(name) else Config.fromfile(name)
    for key in [key for key, value in dict.items(cfg._cfg_dict) if isinstance(value, type)]:
        del cfg._cfg_dict[key]  # imported by a text config
    _name_types(cfg._cfg_dict, cfg)
    return cfg


def config_of(whose: str, name: str | Path) -> Any:
    """`load_config`, with an error for people.

    Args:
        whose: what it is the config of, like ``the teacher``.
        name: as `load_config` takes it.

    Raises:
        UserError: there is none that can be read.
    """
    try:
        return load_config(name)
    except Exception as error:
        near = similar_config(error)
        raise UserError(
            f"Cannot read the config of {whose}.",
            expected="a config file, or a name like mmdet::atss/atss_r50_fpn_1x_coco.py",
            found=f"{name} ({type(error).__name__}: {error})",
            remedy=f"did you mean {near}?"
            if near
            else "correct the path (relative to the working directory) or the file",
        ) from error


def dumped_config(path: Path) -> Mapping[str, Any]:
    """A config that mmengine wrote into a work dir, without its imports; empty if it cannot be read."""
    from mmengine.config import Config

    try:
        return Config.fromfile(path, import_custom_modules=False)
    except Exception:
        return {}


def similar_config(error: Exception) -> str | None:
    """Suggest the intended config if none was found.

    Args:
        error: the error raised when reading it.

    Returns:
        A name for `load_config`: of a recipe in the same package, or of a file in the same folder. ``None``
        if none is similar, or if something else went wrong.
    """
    if not isinstance(error, FileNotFoundError):
        return None
    told = re.search(r'"(.+)" does not exist', str(error))
    path = Path(told[1] if told else str(error.filename))
    root = next((folder for folder in path.parents if folder.parts[-2:] == (".mim", "configs")), None)
    found = {
        file.relative_to(root or path.parent).as_posix(): file
        for file in (root.rglob("*.py") if root else path.parent.glob("*.py"))
    }
    name = path.relative_to(root or path.parent).as_posix()
    near = f"{name}.py" if f"{name}.py" in found else nearest(name, found)
    if near is None:
        return None
    if root is None:
        file, here = found[near], Path.cwd()
        return str(file.relative_to(here) if file.is_relative_to(here) else file)
    package = root.parents[1].name
    return f"{'mmkd' if package == 'recipes' else package}::{near}"


def _name_types(value: Any, cfg: Any) -> None:
    """Mend types in place; in pure-Python configs they are imported, and do not change."""
    if isinstance(value, dict):
        for key, part in dict.items(value):  # mmengine's own `items` returns the imported objects instead
            if key == "type":
                value[key] = _named(part, cfg)
            else:
                _name_types(part, cfg)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _name_types(part, cfg)


def _named(kind: Any, cfg: Any) -> Any:
    from mmengine.config.lazy import LazyAttr, LazyObject
    from mmengine.utils import get_object_from_string

    from mmkd.registry import name_in, name_of

    if isinstance(kind, str):
        # `mmdet.models.losses.iou_loss` is also a function, so mmengine finds nothing below it.
        leads = kind.count(".") < 2 or get_object_from_string(kind) is not None
        if leads and not kind.startswith("mmcv.ops."):
            return kind
    elif not isinstance(kind, (type, FunctionType, BuiltinFunctionType)):
        if isinstance(kind, (LazyAttr, LazyObject)):
            kind.build()
        return kind
    name = name_of(kind)
    if "<" in name:  # made in a function: it has no name
        return kind
    return name_in(cfg, name)
