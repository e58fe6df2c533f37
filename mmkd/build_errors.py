"""Plain messages for mmengine's builder errors: unknown types, unknown options, missing options."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from typing import Any

from mmengine.registry import Registry

from mmkd.errors import UserError, nearest, place_of
from mmkd.registry import accepted_arguments, class_of

_UNEXPECTED = re.compile(r"got an unexpected keyword argument '(\w+)'")
_MISSING = re.compile(r"missing \d+ required (?:positional|keyword-only) arguments?: (.+)")


def explained(error: Exception) -> UserError | None:
    """Explain an error from building a part of a config in plain words.

    Args:
        error: an error with its traceback.

    Returns:
        ``None`` if the error is not about a type or an argument in the config.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    building = [frame for frame in frames if frame.f_code.co_name == "build_from_cfg"]
    if not building:
        return None
    found = building[-1].f_locals
    cfg, registry = found.get("cfg"), found.get("registry")
    if not (isinstance(cfg, Mapping) and isinstance(registry, Registry)):
        return None
    at_the_call = frames[-1] is building[-1]
    if isinstance(error, KeyError) and at_the_call:
        return _unknown_type(cfg, registry, place_of(error))
    if not isinstance(error, TypeError):
        return None
    kind, text = class_of(cfg, registry), f"{error}, {place_of(error)}"
    name, valid = getattr(kind, "__name__", str(kind)), accepted_arguments(kind)[0]
    unexpected, missing = _UNEXPECTED.search(str(error)), _MISSING.search(str(error))
    if unexpected and unexpected[1] in cfg:  # it may have been passed to a parent
        near = nearest(unexpected[1], valid)
        return UserError(
            f"{name} has no option {unexpected[1]}.",
            expected=", ".join(valid) or "no option",
            found=text,
            remedy=f"did you mean {near}?" if near else "correct or remove it",
        )
    if missing and at_the_call:
        return UserError(
            f"{name} lacks {missing[1].replace(chr(39), '')}.",
            expected=", ".join(valid),
            found=text,
            remedy="add it",
        )
    return None


def _unknown_type(cfg: Mapping[str, Any], registry: Registry, place: str) -> UserError:
    what = registry.name.replace("_", " ")
    if "type" not in cfg:
        return UserError(
            f"A {what} in the config has no type.",
            expected=f"dict(type=…, …) with the name of a {what}",
            found=f"a dict of {', '.join(map(str, cfg)) or 'nothing'}, {place}",
            remedy="add its type",
        )
    near = nearest(str(cfg["type"]).rpartition(".")[2], names_in(registry))
    return UserError(
        f"Unknown {what} {cfg['type']!r}.",
        expected=f"the name of a registered {what}",
        found=f"{cfg['type']}, {place}",
        remedy=f"did you mean {near}?"
        if near
        else "correct the name, or add the module that registers it to custom_imports",
    )


def names_in(registry: Registry | None) -> set[str]:
    """The names that a registry finds, in itself and its parents."""
    names: set[str] = set()
    while registry is not None:
        names.update(registry.module_dict)
        registry = registry.parent
    return names
