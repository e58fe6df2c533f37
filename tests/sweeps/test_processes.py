from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from mmkd.sweeps.processes import end


def start(handler: str) -> subprocess.Popen[bytes]:
    """A process that does something of its own when it is asked to end."""
    code = f"""
import signal, sys
signal.signal(signal.SIGTERM, {handler})
print("ready", flush=True)
while True:
    signal.pause()
"""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_asks_first() -> None:
    process = start("lambda *_: sys.exit(7)")
    end(process, 20)
    assert process.returncode == 7


def test_then_insists() -> None:
    process = start("signal.SIG_IGN")
    end(process, 0.2)
    assert process.returncode == -signal.SIGKILL


def test_leaves_nothing_of_the_group() -> None:
    # A shell without `exec`: asked to end, it leaves its child behind.
    process = subprocess.Popen(
        ["bash", "-c", "sleep 100 & echo $!; wait"], start_new_session=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    end(process, 20)
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{child}/stat") as stat:
            if stat.read().split()[2] == "Z":
                return
        time.sleep(0.05)
    pytest.fail("the child lives on")


def test_an_ended_process_is_left_alone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    end(process, 1)
    assert process.returncode == 0
