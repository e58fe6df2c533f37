"""The optional packages of the export."""

from __future__ import annotations

import importlib
from typing import Any

from mmkd.errors import UserError


def needed() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime."""
    found = []
    for name in ("onnx", "onnxruntime"):
        try:
            found.append(importlib.import_module(name))
        except Exception as error:
            raise UserError(
                f"Export needs {name}.",
                expected="onnx and onnxruntime",
                found=f"{type(error).__name__}: {error}",
                remedy="pip install 'mmkd[export]'",
            ) from error
    return found[0], found[1]
