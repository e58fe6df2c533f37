"""Ends the processes of trials."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress


def end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Ask a process to end; after some time, kill it and everything it started.

    Args:
        process: the leader of its process group.
        patience: seconds.
    """
    if process.poll() is not None:
        return
    process.terminate()  # only the leader: data loaders end with it, torchrun tells its workers
    with suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    with suppress(ProcessLookupError):  # the process group has already ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
