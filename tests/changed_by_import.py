"""``python -m tests.changed_by_import``: what of torch, mmengine, mmcv and mmdet ``import mmkd`` changes.

All of their modules that mmkd needs are imported first. Then each attribute that is another object after the
import, and each dict, list or set with other content, is printed; of classes theirs as well. Registries are
objects of their own kind and not looked into.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType
from typing import Any

OTHERS = ("torch", "mmengine", "mmcv", "mmdet")


def modules_needed() -> list[str]:
    code = "import mmkd, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines()[-1].split() if name.partition(".")[0] in OTHERS]


def snapshot(names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        for key, value in vars(sys.modules[name]).items():
            if isinstance(value, ModuleType):
                continue
            found[f"{name}.{key}"] = value
            if isinstance(value, type) and value.__module__ == name:
                found.update({f"{name}.{key}.{inner}": each for inner, each in vars(value).items()})
    return {key: (value, copied(value)) for key, value in found.items()}


def copied(value: Any) -> Any:
    return type(value)(value) if type(value) in (dict, list, set) else value


def same(before: Any, after: Any) -> bool:
    """Whether it is the same object, or a container of the same objects."""
    if type(before) is not type(after) or type(before) not in (dict, list, set):
        return before is after
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(before[key] is after[key] for key in before)
    return list(map(id, before)) == list(map(id, after))


def main() -> None:
    names = modules_needed()
    for name in names:
        importlib.import_module(name)
    before = snapshot(names)
    importlib.import_module("mmkd")
    for key, (value, copy) in snapshot(names).items():
        if key not in before or not same(before[key][1], copy) or not same(before[key][0], value):
            print(key)


if __name__ == "__main__":
    main()
