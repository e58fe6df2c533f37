"""Everything that ``import mmkd`` changes outside mmkd, except names in mmdet's registries.

- ``mmengine.runner.CheckpointLoader`` uses `mmkd.checkpoints`: it reads data only, and verifies hashes.
  mmengine's own loaders run whatever a pickle names, and since torch 2.6 cannot read mmengine's own files.
- ``torch.serialization``'s safe globals include what mmengine writes into every checkpoint, its message hub
  (`HistoryBuffer` objects, NumPy arrays), for other code that calls `torch.load`, which refuses it since
  torch 2.6. Other pickles are still refused.
- mmengine's table of packages with configs includes ``mmkd``, so ``_base_ = ["mmkd::bccd/kd.py"]`` works.

`tests/test_mmengine_adaptations.py` compares the process before and after, and finds no other changes.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
import torch

from mmkd.checkpoints.allowed import history_buffer_method


def adapt_mmengine() -> None:
    """Make mmengine read checkpoints as data and find ``mmkd::`` configs; calling it again has no effect."""
    from mmengine.config.utils import MODULE2PACKAGE

    from mmkd.checkpoints.loaders import register_loaders

    register_loaders()
    allow_mmengine_checkpoints()
    MODULE2PACKAGE.setdefault("mmkd", "mmkd.recipes")


def mmengine_safe_globals() -> list[Any]:
    """What mmengine's own checkpoints contain besides tensors and plain containers."""
    from mmengine.logging import HistoryBuffer

    core = importlib.import_module(
        "numpy._core.multiarray" if np.__version__[0] > "1" else "numpy.core.multiarray"
    )
    numeric = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdFDUS"]
    names: list[Any] = [HistoryBuffer, np.ndarray, np.dtype, *dict.fromkeys(numeric)]
    for package in ("numpy._core.multiarray", "numpy.core.multiarray"):
        names += [(core._reconstruct, f"{package}._reconstruct"), (core.scalar, f"{package}.scalar")]
    return [*names, (history_buffer_method, "builtins.getattr")]


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    Does nothing before torch 2.6, which reads any pickle by default.
    """
    if torch_loads_weights_only():
        torch.serialization.add_safe_globals(mmengine_safe_globals())


def torch_loads_weights_only() -> bool:
    """Whether this torch version defaults to ``weights_only=True`` (2.6)."""
    major, minor = re.match(r"(\d+)\.(\d+)", torch.__version__).groups()  # type: ignore[union-attr]
    return (int(major), int(minor)) >= (2, 6)
