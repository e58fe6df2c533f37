"""Functions that mmengine expects in every package with a scope."""

from mmengine.registry import init_default_scope as set_default_scope


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register mmkd's modules, which importing mmkd has already done.

    Args:
        init_default_scope: make ``mmdet``, whose registries contain them, the default scope.
    """
    if init_default_scope:
        set_default_scope("mmdet")
