"""A hook that records the times of iterations and epochs, for benchmarks/train_cost.py."""

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
    """Writes ``clock.json`` into the work dir: when each epoch began and each iteration ended, in seconds."""

    priority = "LOWEST"

    def before_train(self, runner: Any) -> None:
        """Start the clock."""
        self.epochs: list[float] = []
        self.iterations: list[list[float]] = []

    def before_train_epoch(self, runner: Any) -> None:
        """Record the start of an epoch."""
        self.epochs.append(time.perf_counter())
        self.iterations.append([])

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        """Record the end of an iteration."""
        self.iterations[-1].append(time.perf_counter())

    def after_train(self, runner: Any) -> None:
        """Write the file."""
        content = {"epochs": self.epochs, "iterations": self.iterations, "end": time.perf_counter()}
        (Path(runner.work_dir) / FILE).write_text(json.dumps(content))
