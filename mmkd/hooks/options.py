"""Checks the options of mmkd's own hooks before mmengine builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook

from mmkd.errors import UserError, check_arguments, type_of
from mmkd.registry import HOOKS, class_of


def check_hooks(hooks: Any) -> None:
    """Check ``custom_hooks``: its form, and the option names of mmkd's hooks.

    Args:
        hooks: the ``custom_hooks`` of a config, or ``None``.

    Raises:
        UserError: it is not a list of hooks, or an mmkd hook lacks an option or does not know one.
    """
    if hooks is None:
        return
    if not isinstance(hooks, (list, tuple)):
        raise UserError(f"custom_hooks must be a list like [dict(type='MetricsFileHook')], found {hooks!r}")
    for place, hook in enumerate(hooks):
        if isinstance(hook, Hook):
            continue
        if not isinstance(hook, Mapping) or not isinstance(hook.get("type"), (str, type)):
            raise UserError(
                f"custom_hooks[{place}] is not a hook.",
                expected="a dict with a hook name, like dict(type='MetricsFileHook')",
                found=repr(hook),
                remedy="correct or remove it",
            )
        _check_own(f"custom_hooks[{place}] ({type_of(hook)})", hook)


def _check_own(what: str, hook: Mapping[str, Any]) -> None:
    kind = class_of(hook, HOOKS)
    if kind is None or not kind.__module__.startswith("mmkd."):
        return  # mmengine reports a missing type
    check_arguments(what, set(hook) - {"type", "priority", "_scope_"}, kind)
