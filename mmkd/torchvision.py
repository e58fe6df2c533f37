"""Finds the torchvision version for the installed torch, and handles a broken one.

mmengine asks torchvision for the addresses of ``torchvision://`` weights, and imports it to log its version.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys

import torch
from mmengine.logging import print_log


def requirement() -> str:
    """The pip requirement, like ``torchvision==0.28.0``: each version is compiled for one torch version."""
    minor, patch = re.match(r"\d+\.(\d+)\.(\d+)", torch.__version__).groups()  # type: ignore[union-attr]
    return f"torchvision==0.{int(minor) + 15}.{patch}"


def remedy() -> str:
    """How to install it, like ``pip install torchvision==0.28.0``; CPU builds are on PyTorch's index."""
    build = torch.__version__.partition("+")[2]
    index = (
        f" --index-url https://download.pytorch.org/whl/{build}" if re.match("cpu|cu|rocm|xpu", build) else ""
    )
    return f"pip install {requirement()}{index}"


def survive() -> None:
    """Treat a broken torchvision as missing, with a warning.

    If it was compiled for another torch, it fails in unexpected ways
    (``operator torchvision::nms does not exist``), and mmengine's Runner imports it to log its version. Call
    this before building a Runner.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        pass
    except Exception as error:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        print_log(
            f"cannot import torchvision, continuing without it ({type(error).__name__}: {error}). "
            f"Remedy: {remedy()} (matches torch {torch.__version__})",
            "current",
            logging.WARNING,
        )
