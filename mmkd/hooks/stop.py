"""Stop training on request without losing progress."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import BaseLoop, Runner

from mmkd.durable import use_durable_files
from mmkd.errors import UserError, check_options
from mmkd.hooks.interrupted import remove_outdated, save_interrupted, skip_done_batches
from mmkd.hooks.workers import ShieldedWorker, end_workers
from mmkd.registry import HOOKS
from mmkd.sweeps.agent import in_sweep


class TrainingStopped(SystemExit):
    """Training stopped early on request; ``code`` is the exit code."""


@HOOKS.register_module()
class StopHook(Hook):
    """Stop training within one iteration after a signal.

    All processes agree, write the checkpoint ``interrupted.pth`` and exit with `TrainingStopped`.
    ``--resume`` continues from there: in the middle of an epoch with its remaining batches (with
    `ReproducibleHook` and the same random numbers), and with the validation if that was interrupted
    (`ResumeHook`).

    Args:
        stop_signals: end training for good; exit code 0. By default SIGTERM in a sweep, whose agent sends it
            to runs that are not worth continuing.
        preempt_signals: the machine is needed elsewhere; exit code 128 + signal, so that a scheduler restarts
            the run. By default SIGUSR1, SIGINT (Ctrl-C), and SIGTERM outside a sweep. A second SIGINT ends
            the process at once.

    Raises:
        UserError: an unknown signal, or one that is in both lists.
    """

    priority = "LOWEST"  # after the iteration's checkpoint and log

    def __init__(
        self, stop_signals: Sequence[str] | None = None, preempt_signals: Sequence[str] | None = None
    ) -> None:
        for signals in (stop_signals, preempt_signals):
            if signals is not None and (isinstance(signals, str) or not isinstance(signals, Sequence)):
                raise UserError(f"StopHook takes lists of signals like ['SIGTERM'], found {signals!r}")
        if stop_signals is None:
            stop_signals = ["SIGTERM"] if in_sweep() and "SIGTERM" not in (preempt_signals or ()) else []
        if preempt_signals is None:
            names = [name for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
            preempt_signals = [name for name in names if name not in stop_signals]
        check_options("StopHook", [*stop_signals, *preempt_signals], [s.name for s in signal.Signals])
        both = set(stop_signals) & set(preempt_signals)
        if both:
            raise UserError(
                "A signal cannot be in both stop_signals and preempt_signals.",
                expected="each signal in only one of them",
                found=f"{', '.join(sorted(both))} in both",
                remedy="remove it from one of them",
            )
        self.exit_codes = {signal.Signals[name]: 0 for name in stop_signals}
        self.exit_codes |= {signal.Signals[name]: 128 + signal.Signals[name] for name in preempt_signals}
        self.exit_code: int | None = None
        self.reason = "another process received a stop signal"
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._common_batches = 0
        self._settled = True
        self._validating = False
        self._interrupted = False

    def request(self, exit_code: int, reason: str) -> None:
        """Request the end of training; safe to call from signal handlers and other threads.

        Args:
            exit_code: 0 to end for good; otherwise the run should be restarted.
            reason: for the log.
        """
        if self.exit_code is None or exit_code > self.exit_code:
            self.reason, self.exit_code = reason, exit_code

    def before_run(self, runner: Runner) -> None:
        """Install the signal handlers, and make files atomic."""
        use_durable_files()
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in self.exit_codes:
                self._before[number] = signal.signal(number, self._on_signal)
            for loop in (runner._train_loop, runner._val_loop):
                if isinstance(loop, BaseLoop):
                    shield = ShieldedWorker(loop.dataloader.worker_init_fn, tuple(self.exit_codes))
                    loop.dataloader.worker_init_fn = shield

    def before_train(self, runner: Runner) -> None:
        """Continue where an interrupted run stopped."""
        skip_done_batches(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the data loader's workers with the signals blocked."""
        self._block(True)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Unblock the signals: the workers have started."""
        self._block(False)
        self._settled = False

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Unblock the signals: the workers have started."""
        self._block(False)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """End training if any process was asked to stop."""
        if self._agree():
            self._end(runner, runner.iter + 1)
        self._settled = True

    def before_val_epoch(self, runner: Runner) -> None:
        """Get the number of batches of every process; start the workers with the signals blocked."""
        self._block(True)
        length = torch.tensor(len(runner.val_dataloader))
        all_reduce(length, "min")
        self._common_batches = int(length)
        self._validating = is_training(runner)

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """End training in the middle of a validation if any process was asked to stop."""
        if is_training(runner) and batch_idx < self._common_batches and self._agree():
            self._end(runner, runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Note that the validation is done."""
        self._validating = False

    def after_train(self, runner: Runner) -> None:
        """Remove an interruption's checkpoint once a newer one has replaced it."""
        remove_outdated(runner)

    def save_after_failure(self, runner: Runner) -> Path | None:
        """Save the state of a failed training if it is consistent.

        It is consistent between two steps and during validation: for example if a sample cannot be loaded.

        Returns:
            The checkpoint, or None if nothing was trained or a step was in progress.
        """
        if not (self._settled and is_training(runner) and runner.iter):
            return None
        return self._save(runner, runner.iter)

    def after_run(self, runner: Runner) -> None:
        """Restore the signal handlers; end the data loaders' workers."""
        self._block(False)
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            if isinstance(loop, BaseLoop):
                end_workers(loop)
        while self._before:
            signal.signal(*self._before.popitem())

    def _block(self, block: bool) -> None:
        if self._before and hasattr(signal, "pthread_sigmask"):  # not on Windows, which lacks it
            signal.pthread_sigmask(signal.SIG_BLOCK if block else signal.SIG_UNBLOCK, self.exit_codes)

    def _on_signal(self, number: int, _: Any) -> None:
        if os.getpid() != self._process:  # forked by an evaluator: VOCMetric ends its pool with SIGTERM
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or number == signal.SIGINT
        self.request(self.exit_codes[signal.Signals(number)], signal.Signals(number).name)

    def _agree(self) -> bool:
        if get_world_size() > 1:
            code = torch.tensor(-1 if self.exit_code is None else self.exit_code)
            all_reduce(code, "max")
            self.exit_code = None if code < 0 else int(code)
        return self.exit_code is not None

    def _end(self, runner: Runner, iterations: int) -> None:
        path = self._save(runner, iterations)
        where = f"at epoch {runner.epoch + 1}" if not self._validating else "in a validation"
        runner.logger.info(
            f"training stopped early ({self.reason}) {where}, after iteration {iterations}; use "
            f"--resume to continue from {path}"
        )
        runner.call_hook("after_run")
        assert self.exit_code is not None
        raise TrainingStopped(self.exit_code)

    def _save(self, runner: Runner, iterations: int) -> Path:
        if self._validating:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # restores the model's own weights
        return save_interrupted(runner, iterations, self._validating)


def is_training(runner: Runner) -> bool:
    """Whether a validation belongs to a training; the loop is a dict until training builds it."""
    return isinstance(runner._train_loop, BaseLoop)
