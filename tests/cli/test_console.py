from __future__ import annotations

import os
import subprocess
import sys

import pytest

PRINT = "from mmkd.cli.console import print_anything; print_anything(); print({!r})"


@pytest.mark.slow
def test_what_the_console_cannot_show_is_replaced() -> None:
    code = PRINT.format("≥ 0.5")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "? 0.5\n")


@pytest.mark.slow
def test_a_reader_that_has_read_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PRINT.format("unread")],
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
