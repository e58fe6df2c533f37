"""Run a function in a process of its own, with bounds on its time and memory."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Ended:
    """How it ended: its exit code, negative for a signal, and all that it printed."""

    code: int
    printed: str


def isolated(function: Callable[[], int], file: Path, seconds: int, gigabytes: float) -> Ended:
    """Fork, call a function there, and wait for it.

    Args:
        function: returns the exit code.
        file: where its output is kept.
        seconds: after which it is killed by SIGALRM, whose code is −14.
        gigabytes: that it may take beyond what this process has.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if not process:
        _child(function, file, seconds, gigabytes)
    _, status = os.waitpid(process, 0)
    return Ended(os.waitstatus_to_exitcode(status), file.read_text(errors="replace"))


def _child(function: Callable[[], int], file: Path, seconds: int, gigabytes: float) -> None:
    code = 70
    try:
        torch.set_num_threads(1)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        bound = pages * os.sysconf("SC_PAGE_SIZE") + int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        with (
            file.open("w", buffering=1) as out,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
        ):
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            try:
                code = function()
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)
