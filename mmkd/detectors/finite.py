"""Non-finite losses: stop training, or let a loss scaler skip the step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.logging import MessageHub, print_log
from torch import Tensor, nn

from mmkd.errors import UserError

# A forward pass overflows now and then in float16; this many in a row are no coincidence.
TOLERATED = 5


class FiniteCheck:
    """Stop training before a non-finite loss reaches the weights.

    With mixed precision's loss scaler it cannot reach them: the scaler checks the gradients and skips the
    step. Then up to `TOLERATED` consecutive steps pass, each with a warning, and the running statistics of
    normalisation layers are restored too. All processes decide alike, whichever has the loss.
    """

    def __init__(self) -> None:
        self.scaled = False
        self._in_a_row = 0
        self._buffers: list[Tensor] = []
        self._before = torch.empty(0)

    @torch.compiler.disable
    def look_at(self, optim_wrapper: Any) -> None:
        """Find out whether this optimizer wrapper scales losses, and so skips steps."""
        scaler = getattr(optim_wrapper, "loss_scaler", None)
        self.scaled = scaler is not None and bool(scaler.is_enabled())

    def remember(self, model: nn.Module) -> None:
        """Save the running statistics before a forward pass whose step may be skipped."""
        if self.scaled:
            self._buffers = [buffer for buffer in model.buffers() if buffer.dtype == torch.float32]
            self._before = torch.cat([buffer.flatten() for buffer in self._buffers] or [torch.empty(0)])

    def _put_back(self) -> None:
        parts = self._before.split([buffer.numel() for buffer in self._buffers])
        for buffer, part in zip(self._buffers, parts):
            buffer.data.copy_(
                part.view_as(buffer)
            )  # autograd forbids others; BatchNorm in training reads none

    @torch.compiler.disable
    def __call__(self, total: Tensor, log_vars: Mapping[str, Tensor]) -> None:
        """Check the sum of the losses.

        Args:
            total: the sum, a scalar.
            log_vars: its terms by name, and the sum as ``loss``.

        Raises:
            UserError: the sum is not finite in some process, and no scaler skips the step, or too many in a
                row; names the first such term and the iteration.
        """
        here = torch.isfinite(total.detach())
        everywhere = here.int()
        all_reduce(everywhere, op="min")
        if everywhere:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        terms = {key: float(value) for key, value in log_vars.items() if key != "loss"}
        broken = (key for key, value in terms.items() if not abs(value) < float("inf"))
        first = "the loss of another process" if here else next(broken, "the sum of the losses")
        iteration = MessageHub.get_current_instance().get_info("iter", 0) + 1
        if self.scaled and self._in_a_row <= TOLERATED:
            print_log(
                f"{first} is not finite at iteration {iteration}; the loss scaler skips this step "
                f"({self._in_a_row} in a row, more than {TOLERATED} stop training)",
                "current",
                logging.WARNING,
            )
            self._put_back()
            return
        often = f"in {self._in_a_row} consecutive steps: " if self.scaled else ""
        raise UserError(
            f"Training stopped: {first} is not finite at iteration {iteration}.",
            expected="finite losses",
            found=often + ", ".join(f"{key} {value:.4g}" for key, value in terms.items()),
            remedy="lower the learning rate or the term's loss_weight, clip gradients "
            "(optim_wrapper.clip_grad), or check the annotations; "
            + ("or train without --amp; " if self.scaled else "")
            + "the last checkpoint is intact",
        )


def in_float16(device: torch.device) -> bool:
    """Whether autocast computes in float16 here."""
    if hasattr(torch, "get_autocast_dtype"):
        kind = device.type
        return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return torch.is_autocast_enabled() and torch.get_autocast_gpu_dtype() == torch.float16  # before 2.4
