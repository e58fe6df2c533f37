from __future__ import annotations

import multiprocessing
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mmkd import StopHook

from .toy import Call, toy_runner


@pytest.mark.parametrize("where", ["after_train_iter", "after_val_iter"])
def test_workers_heed_their_parent_alone(tmp_path: Path, where: str) -> None:
    signalled: list[int] = []

    def signal_the_group(_: Any) -> None:
        for worker in multiprocessing.active_children():
            signalled.append(int(worker.pid or 0))
            # From another process, as launchers do.
            subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)

    runner = toy_runner(tmp_path, Call(where, 1, signal_the_group), StopHook(), num_workers=1)
    runner.train()
    assert signalled
    assert runner.iter == 15
    assert not multiprocessing.active_children()

    def terminate(_: Any) -> None:
        for worker in multiprocessing.active_children():
            worker.terminate()
            worker.join(10)
            assert worker.exitcode == 0

    runner = toy_runner(tmp_path, Call("after_train_iter", 5, terminate), StopHook(), num_workers=1, epochs=1)
    runner.train()
