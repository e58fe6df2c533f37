"""The functions are public, have examples that run, and need torch alone."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mmkd
from mmkd import functional

MODULES = sorted(
    f"mmkd.functional.{file.stem}" for file in Path(functional.__file__).parent.glob("[a-z]*.py")
)
LIBRARIES = ("mmdet", "mmengine", "mmcv", "numpy", "requests", "safetensors")
PUBLIC = [getattr(functional, name) for name in functional.__all__]

WITHOUT = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Nothing())
"""


def run_without(code: str, *libraries: str) -> subprocess.CompletedProcess[str]:
    """Run code where some libraries cannot be imported."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT.format(libraries or LIBRARIES) + code],
        env={**os.environ, "PYTHONPATH": str(Path(mmkd.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_torch_is_all_that_is_needed() -> None:
    code = """
import doctest, importlib, json, mmkd.functional
done = [doctest.testmod(importlib.import_module(name)) for name in {}]
print(json.dumps([*map(sum, zip(*done)), [name for name in sys.modules if name.startswith("mmkd")]]))
"""
    done = run_without(code.format(MODULES))
    assert done.returncode == 0, done.stderr
    failed, tried, loaded = json.loads(done.stdout)
    assert failed == 0
    assert tried > len(PUBLIC)
    assert {*loaded} == {"mmkd", "mmkd.version", "mmkd.functional", *MODULES}


@pytest.mark.parametrize(
    "code", ["import mmkd; mmkd.KDSingleStageDetector", "from mmkd import FrozenTeacher"]
)
def test_what_needs_mmdetection_says_so(code: str) -> None:
    said = run_without(code).stderr.splitlines()
    assert "needs MMDetection 3.x, which is not installed" in said[-2]
    assert "make install" in said[-1]


def test_what_is_not_there_at_all_is_an_attribute_error() -> None:
    done = run_without("import mmkd\nprint(mmkd.__version__, hasattr(mmkd, 'nonsense'))")
    assert done.stdout.split() == [mmkd.__version__, "False"], done.stderr


def test_the_commands_still_say_what_is_missing() -> None:
    code = "sys.argv = ['bin/mmkd-train', 'config.py']\nimport mmkd"
    assert "mmkd needs mmdet, which cannot be imported" in run_without(code, "mmdet").stderr


@pytest.mark.parametrize("module", ["mmkd.functional", *MODULES])
def test_examples_run(module: str) -> None:
    torch.manual_seed(0)
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("function", PUBLIC, ids=functional.__all__)
def test_each_function_has_an_example(function: Any) -> None:
    assert "\n    Example:\n        >>>" in function.__doc__
