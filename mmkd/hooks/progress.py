"""Training progress in one block on the terminal."""

from __future__ import annotations

import atexit
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.progress_bar import ProgressBar
from rich.table import Table

from mmkd.hooks.stop import is_training
from mmkd.hooks.teacher_time import TeacherTime
from mmkd.registry import HOOKS
from mmkd.sharding import unwrapped
from mmkd.terminal import Terminal, short_output

_SECONDS = 0.25  # between two updates of the block
_LINES, _SILENCE = 5, 600.0  # plain lines per training; seconds of silence before another
# Time the teacher once in this many steps: a prime, so that both steps with and without it are met.
_MEASURED = 11


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show epoch, losses, metric, time left and the teacher's share of a step.

    A terminal shows one block that is updated in place. Elsewhere a training prints five plain lines, and
    another one after ten minutes without any. mmengine's own lines go only to its log file. Losses and times
    are averaged over the same window as mmengine's (``log_processor.window_size``). Only the main process
    prints, and nothing is printed with ``mmkd-train --verbose``.
    """

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._terminal: Terminal | None = None
        self._teacher: TeacherTime | None = None
        self._shares: list[float] = []
        self._measuring, self._steps = False, 0
        self._told = self._drawn = time.monotonic()
        self._next_line = 0

    def before_train(self, runner: Runner) -> None:
        """Start showing progress."""
        self._open()
        if self._terminal is not None:
            self._teacher = TeacherTime(unwrapped(runner.model))
            self._next_line = runner.iter * _LINES // max(1, runner.max_iters) + 1

    def before_test(self, runner: Runner) -> None:
        """Start showing progress."""
        self._open()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Time the teacher in some steps; not in the first, which includes its setup."""
        if self._teacher is not None and self._steps % _MEASURED == 1:
            self._measuring = self._teacher.begin()
        self._steps += 1

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Show the step."""
        if self._terminal is None or self._teacher is None:
            return
        if self._measuring:
            self._teacher.end()
            self._measuring = False
            times = runner.message_hub.log_scalars.get("train/time")
            if times is not None:
                self._shares.append(min(1.0, self._teacher.seconds / max(times.current(), 1e-9)))
        done, last = runner.iter + 1, runner.iter + 1 == runner.max_iters
        if self._terminal.has_block:
            if last or time.monotonic() - self._drawn >= _SECONDS:
                self._draw(runner, where(runner, batch_idx), done, runner.max_iters)
        elif last:
            return  # the last line follows the validation
        elif done * _LINES >= self._next_line * runner.max_iters or time.monotonic() - self._told > _SILENCE:
            self._next_line = done * _LINES // runner.max_iters + 1
            self._tell(runner, where(runner, batch_idx), f"{_left(runner)} left")

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Show the progress of a validation."""
        self._evaluated(runner, "validation", batch_idx, len(runner.val_dataloader))

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Show the progress of a test."""
        self._evaluated(runner, "test", batch_idx, len(runner.test_dataloader))

    def after_train(self, runner: Runner) -> None:
        """Show the result of the last validation."""
        if self._terminal is not None and self._terminal.has_block:
            self._draw(runner, "training finished", runner.max_iters, runner.max_iters)
        elif self._terminal is not None:
            self._tell(runner, "training finished")

    def after_run(self, runner: Runner) -> None:
        """Stop updating the block."""
        if self._teacher is not None:
            self._teacher.end()
        if self._terminal is not None:
            self._terminal.leave_block()
        self._terminal = None
        self._stack.close()

    def _open(self) -> None:
        if is_main_process() and self._terminal is None:
            terminal = self._stack.enter_context(short_output())
            atexit.register(self._stack.close)  # for other programs, if training fails
            self._terminal = None if terminal.verbose else terminal

    def _tell(self, runner: Runner, text: str, *more: str) -> None:
        assert self._terminal is not None
        self._told = time.monotonic()
        self._terminal.say("; ".join([text, *self._rows(runner), *more]))

    def _evaluated(self, runner: Runner, what: str, batch_idx: int, of: int) -> None:
        last = batch_idx + 1 == of
        if self._terminal is None or not self._terminal.has_block:
            return
        if last or time.monotonic() - self._drawn >= _SECONDS:
            text = f"{what}, batch {batch_idx + 1}/{of}"
            done, total = (runner.iter, runner.max_iters) if is_training(runner) else (batch_idx + 1, of)
            self._draw(runner, text, done, total)

    def _draw(self, runner: Runner, text: str, done: int, total: int) -> None:
        assert self._terminal is not None
        self._drawn = time.monotonic()
        head = Table.grid(padding=(0, 2))
        left = f"{_left(runner)} left" if is_training(runner) and done < total else ""
        head.add_row(
            text,
            ProgressBar(total, done, width=30, complete_style="cyan"),
            f"{100 * done // max(1, total)} %",
            left,
        )
        block = Table.grid()
        block.add_row(head)
        if is_training(runner):
            for row in self._rows(runner):
                block.add_row(row)
        self._terminal.show(block)

    def _rows(self, runner: Runner) -> list[str]:
        """Losses, metric and times."""
        means = _means(runner)
        parts = _parts(means)
        told = ", ".join(f"{name} {value:.3g}" for name, value in parts.items())
        rows = [f"loss {means['loss']:.4g}" + (f" ({told})" if told else "")] if "loss" in means else []
        rows += filter(None, [_metric(runner)])
        if "time" in means:
            share = f", teacher {100 * sum(self._shares) / len(self._shares):.0f} %" if self._shares else ""
            data = f", data {100 * means.get('data_time', 0) / max(means['time'], 1e-9):.0f} %"
            rows.append(f"{means['time']:.3g} s a step{share}{data}")
        return rows


def where(runner: Runner, batch_idx: int) -> str:
    """The position in a training: epoch and batch, or the iteration."""
    if not runner.log_processor.by_epoch:
        return f"iteration {runner.iter + 1}/{runner.max_iters}"
    batch, of = batch_idx + 1, len(runner.train_dataloader)
    return f"epoch {runner.epoch + 1}/{runner.max_epochs}" + (f", batch {batch}/{of}" if batch < of else "")


def _means(runner: Runner) -> dict[str, float]:
    """Averages of the logged losses and times, without the steps that a loss scaler skipped."""
    window = runner.log_processor.window_size
    means = {}
    for key, buffer in runner.message_hub.log_scalars.items():
        mode, _, name = key.partition("/")
        if mode == "train" and ("loss" in name or name in ("time", "data_time")):
            values = [value for value in buffer.data[0][-window:] if math.isfinite(value)]
            means[name] = float(torch.tensor(values).mean()) if values else math.nan
    return means


def _parts(means: Mapping[str, float]) -> dict[str, float]:
    """The parts of the loss by their short names, distillation losses last."""
    parts = {name.removeprefix("loss_"): mean for name, mean in means.items() if name.startswith("loss_")}
    rest = means.get("loss", 0.0) - sum(parts.values())
    if parts and abs(rest) > 1e-3 * abs(means["loss"]):  # for example the stages of a cascade
        parts["other"] = rest
    return dict(sorted(parts.items(), key=lambda part: part[0].startswith("kd_")))


def _metric(runner: Runner) -> str:
    """The last value of the metric and the best so far, including those before a resume."""
    found: Mapping[str, Any] = {
        name.removeprefix("val/"): buffer
        for name, buffer in runner.message_hub.log_scalars.items()
        if name.startswith("val/") and name not in ("val/time", "val/data_time")
    }
    name = next((name for name in found if name.endswith("mAP")), next(iter(found), None))
    if name is None:
        return ""
    values = [float(value) for value in found[name].data[0]]
    short = name.rpartition("/")[2].removeprefix("bbox_")
    best = f", best {max(values):.3f}" if short.endswith("mAP") and len(values) > 1 else ""
    return f"{short} {values[-1]:.3f}{best}"


def _left(runner: Runner) -> timedelta:
    return timedelta(seconds=int(runner.message_hub.get_info("eta", 0)))
