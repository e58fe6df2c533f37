"""mmdet's registries, and the scope ``mmkd`` below them.

mmkd registers its classes in mmdet's own registries, so every MMDetection config finds them. mmengine marks
everything that a config inherits from ``mmkd::…`` with the scope ``mmkd`` and then looks for registries of
that scope; each of them here is empty and forwards every lookup to mmdet.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import mmcv.ops
import mmdet.registry
import mmengine.registry
from mmdet.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    TRANSFORMS,
    VISBACKENDS,
)
from mmengine.registry import Registry

REGISTRIES = [
    node for node in vars(mmdet.registry).values() if isinstance(node, Registry) and node.scope == "mmdet"
]
TEACHERS = Registry("teacher", scope="mmdet")  # for teachers that are not mmdet detectors
SCOPE = [Registry(node.name, parent=node, scope="mmkd") for node in (*REGISTRIES, TEACHERS)]

__all__ = [
    "DATASETS",
    "DATA_SAMPLERS",
    "HOOKS",
    "METRICS",
    "MODELS",
    "OPTIM_WRAPPERS",
    "REGISTRIES",
    "SCOPE",
    "TEACHERS",
    "TRANSFORMS",
    "VISBACKENDS",
    "accepted_arguments",
    "class_of",
    "imported_modules",
    "is_kind",
    "name_in",
    "name_of",
    "package_of",
    "registered",
]


def class_of(cfg: Any, registry: Registry = MODELS) -> Any:
    """The class or function that a config's ``type`` refers to.

    Args:
        cfg: a config with a ``type``, or the type itself: a class, a name, or a name with its scope
            (``'ATSS'``, ``'mmdet.ATSS'``, ``ATSS``).
        registry: the registry for names.

    Returns:
        ``None`` if there is no type, or no class of that name.

    Example:
        >>> class_of(dict(type="mmdet.ATSS")) is class_of("ATSS")
        True
    """
    kind = cfg.get("type") if isinstance(cfg, Mapping) else cfg
    return registry.get(kind) if isinstance(kind, str) else kind


def accepted_arguments(kind: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """The named arguments of a class or function; with ``**kwargs`` those of its parents too.

    Args:
        kind: a class or function; anything else has no arguments.

    Returns:
        The arguments by name, and whether others may be accepted: a decorator may translate older names, and
        the last ``**kwargs`` may accept any.
    """
    arguments: dict[str, inspect.Parameter] = {}
    if not isinstance(kind, type):
        functions = [kind] if callable(kind) else []
    else:
        functions = [vars(one)["__init__"] for one in kind.__mro__[:-1] if "__init__" in vars(one)]
    takes_others = False
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        arguments = {**{one.name: one for one in named}, **arguments}
        takes_others = any(one.kind is one.VAR_KEYWORD for one in parameters)
        if not takes_others:
            takes_others = hasattr(function, "__wrapped__")
            break
    arguments.pop("self", None)
    return arguments, takes_others


def imported_modules(cfg: Mapping[str, Any]) -> list[str]:
    """The modules in a config's ``custom_imports``; like mmengine, accepts a single string too.

    Example:
        >>> imported_modules(dict(custom_imports=dict(imports="mine.models")))
        ['mine.models']
    """
    names = (cfg.get("custom_imports") or {}).get("imports") or []
    return [names] if isinstance(names, str) else list(names)


def name_in(cfg: Mapping[str, Any], name: str) -> str:
    """The name under which mmengine finds a class, whatever the config's scope.

    Args:
        cfg: a config; ``default_scope`` is ``None`` in most pure-Python ones.
        name: the class name, without a scope. Names outside mmdet's own registries are returned unchanged.
    """
    bare = cfg.get("default_scope", "mmdet") in ("mmdet", "mmkd") or not any(
        name in node.module_dict for node in _registries()[: len(REGISTRIES)]
    )
    return name if bare else f"mmdet.{name}"


def is_kind(cfg: Any, *kinds: type, registry: Registry = MODELS) -> bool:
    """Whether a config's ``type`` refers to one of these classes or a subclass.

    Args:
        cfg: see `class_of`.
        *kinds: the classes.
        registry: the registry for names.
    """
    found = class_of(cfg, registry)
    return isinstance(found, type) and issubclass(found, kinds)


def name_of(kind: Any) -> Any:
    """The name under which mmdet finds a class or function; unchanged if no mmdet registry has it.

    Args:
        kind: the class or function, its full name, or its name with a scope.

    Example:
        >>> name_of("mmdet.models.losses.iou_loss.GIoULoss"), name_of("mmcv.ops.nms")
        ('GIoULoss', 'nms')
    """
    if callable(kind):
        kind = f"{kind.__module__}.{kind.__qualname__}"
    if not isinstance(kind, str):
        return kind
    scope, name = kind.partition(".")[0], kind.rpartition(".")[2]
    if scope == "mmcv" and hasattr(mmcv.ops, name):  # found there by this name
        return name
    found = registered(name)
    scopes = {package_of(found), "mmdet", "mmkd"} if kind.count(".") == 1 else {package_of(found)}
    return name if found is not None and scope in scopes else kind


def package_of(kind: Any) -> str:
    """The package that a class or function belongs to."""
    return str(getattr(kind, "__module__", "")).partition(".")[0]


def registered(name: str) -> Any:
    """What mmdet finds under a name in any of its registries; ``None`` if there is nothing."""
    for registry in _registries():
        if name in registry.module_dict:
            return registry.module_dict[name]
    return None


@functools.cache
def _registries() -> list[Registry]:
    for node in REGISTRIES:
        node.import_from_location()
    roots = [node for node in vars(mmengine.registry).values() if isinstance(node, Registry)]
    return [*REGISTRIES, *roots]
