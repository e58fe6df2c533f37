"""Data loader workers: they survive a signal to their process group, and end with the run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class ShieldedWorker:
    """Starts a data loader worker that receives these signals only from its parent.

    Launchers and schedulers signal whole process groups. A worker killed by the signal takes the training
    down in the middle of a step. (mmengine's iteration-based loop starts its workers before any hook runs;
    they are not shielded.)

    Args:
        init: the worker's previous init function.
        signals: the signal numbers.
    """

    init: Callable[[int], None] | None
    signals: tuple[int, ...]

    def __call__(self, worker: int) -> None:
        """Run in the worker, as PyTorch's ``worker_init_fn``."""
        if self.init is not None:
            self.init(worker)
        if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
            threading.Thread(target=self._heed_parent, args=(os.getppid(),), daemon=True).start()

    def _heed_parent(self, parent: int) -> None:
        while signal.sigwaitinfo(self.signals).si_pid != parent:
            pass
        os._exit(0)


def end_workers(loop: Any) -> None:
    """End the workers of a loop's data loader now.

    Persistent workers live as long as the Runner, which is part of reference cycles. When those are
    collected, a worker's queue may be gone before the worker is told to end; PyTorch then waits five seconds
    for each.

    Args:
        loop: the Runner's loop; its loader starts new workers if it is used again.
    """
    for owner in (loop.dataloader, getattr(loop, "dataloader_iterator", None)):
        iterator: Any = getattr(owner, "_iterator", None)
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
    loop.dataloader._iterator = None
