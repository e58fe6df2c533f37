"""A hook that writes when each iteration and epoch of a training began, for benchmarks/train_cost.py."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

FILE = "clock.json"


@HOOKS.register_module(force=True)
class ClockHook(Hook):
    """Write ``clock.json`` into the work dir: when each epoch began and each iteration ended, in seconds."""

    priority = "LOWEST"

    def before_train(self, runner: Any) -> None:
        """Begin."""
        self.epochs: list[float] = []
        self.iterations: list[list[float]] = []

    def before_train_epoch(self, runner: Any) -> None:
        """An epoch begins."""
        self.epochs.append(time.perf_counter())
        self.iterations.append([])

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        """An iteration has ended."""
        self.iterations[-1].append(time.perf_counter())

    def after_train(self, runner: Any) -> None:
        """Write."""
        content = {"epochs": self.epochs, "iterations": self.iterations, "end": time.perf_counter()}
        (Path(runner.work_dir) / FILE).write_text(json.dumps(content))
