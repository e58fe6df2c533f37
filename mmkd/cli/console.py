"""Printing on any console: unsupported characters and closed pipes."""

from __future__ import annotations

import atexit
import os
import sys


def print_anything() -> None:
    """Let standard output and error replace what their encoding lacks, like Windows' code pages."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a notebook or a test has put its own
            stream.reconfigure(errors="replace")
    atexit.register(_write_the_rest)


def nobody_reads() -> None:
    """After a broken pipe, as of ``| head``: write nowhere, so that the end of Python does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_the_rest() -> None:
    """What is still in the buffer at the end of the program."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nobody_reads()
    except ValueError:  # it is closed
        pass
