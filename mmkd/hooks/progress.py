"""A progress bar in addition to mmengine's log lines."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mmkd.errors import UserError
from mmkd.registry import HOOKS


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show a bar over all iterations with the running-average loss and time left.

    Only on a terminal and in the main process; elsewhere there are only mmengine's plain log lines. Log lines
    are printed above the bar.

    Args:
        momentum: weight of the newest loss in the running average, in (0, 1].
    """

    priority = "VERY_LOW"

    def __init__(self, momentum: float = 0.05) -> None:
        if not (isinstance(momentum, (int, float)) and 0 < momentum <= 1):
            raise UserError(f"ProgressHook's momentum must be a number in (0, 1], found {momentum!r}")
        self.momentum = momentum
        self._average: float | None = None
        self._stack = ExitStack()
        self._bar: tqdm[Any] | None = None

    def before_train(self, runner: Runner) -> None:
        """Open the bar, at the start iteration of a resumed run."""
        if not (is_main_process() and sys.stdout.isatty()):
            return
        self._stack.enter_context(logging_redirect_tqdm([runner.logger]))
        self._bar = self._stack.enter_context(
            tqdm(total=runner.max_iters, initial=runner.iter, unit="it", dynamic_ncols=True, file=sys.stdout)
        )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Advance by one and update the running average."""
        if self._bar is None:
            return
        loss = torch.as_tensor((outputs or {}).get("loss", float("nan"))).detach().item()
        if math.isfinite(loss):  # otherwise the step was skipped
            self._average = (
                loss if self._average is None else self._average + self.momentum * (loss - self._average)
            )
        self._bar.set_description(f"epoch {runner.epoch + 1}/{runner.max_epochs}", refresh=False)
        if self._average is not None:
            self._bar.set_postfix(loss=f"{self._average:.4f}", refresh=False)
        self._bar.update()

    def after_run(self, runner: Runner) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar and restore the log's output; also after an error."""
        self._bar = None
        self._stack.close()
