"""Compares teacher, student and distilled students: same budget, several seeds, one page.

The package itself can be called: ``mmkd.compare(…)`` is `mmkd.api.compare`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CalledByItsName(ModuleType):
    """A callable package: a function of the same name would shadow it or be shadowed, by import order."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return import_module("mmkd.api").compare(*args, **options)


sys.modules[__name__].__class__ = _CalledByItsName
