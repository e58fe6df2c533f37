"""Training that is killed again and again, at any moment, ends as if nothing had happened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .conftest import repeats, run_tool


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed process is a fork")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    done = run_tool("-m", "tests.killing", str(tmp_path), str(repeats(4, 50)), timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout.splitlines()[-1])
