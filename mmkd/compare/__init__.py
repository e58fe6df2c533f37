"""Teacher, student and distilled students compared: the same budget, several seeds, one page.

The package is called by its name too: ``mmkd.compare(…)`` is `mmkd.api.compare`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CalledByItsName(ModuleType):
    """A function of the name of this package would hide it, or be hidden by it, as imports happen to come."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return import_module("mmkd.api").compare(*args, **options)


sys.modules[__name__].__class__ = _CalledByItsName
