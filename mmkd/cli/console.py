"""Printing on any console: unsupported characters and closed pipes."""

from __future__ import annotations

import atexit
import os
import sys


def print_anything() -> None:
    """Let standard output and error replace what their encoding lacks, like Windows' code pages."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # notebooks and tests may replace the streams
            stream.reconfigure(errors="replace")
    atexit.register(_write_the_rest)


def nobody_reads() -> None:
    """Discard output after a broken pipe (``| head``), so that Python does not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_the_rest() -> None:
    """Flush the buffer at the end of the program."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nobody_reads()
    except ValueError:  # the stream is closed
        pass
