"""Damaged configs: each trains, or ends in a message of ours; none hangs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..conftest import repeats, run_tool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are bounded by means of Linux")


@pytest.mark.slow
def test_undamaged_configs_train(tmp_path: Path) -> None:
    done = run_tool("-m", "tests.properties.drive_damages", str(tmp_path), "0")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.soak
def test_damaged_configs_train_or_end_in_a_message(tmp_path: Path) -> None:
    count = repeats(12, 500)
    done = run_tool(
        "-m", "tests.properties.drive_damages", str(tmp_path), str(count), timeout=300 + 20 * count
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
