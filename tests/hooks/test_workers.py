from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mmkd.hooks import StopHook, TrainingStopped

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


EPOCHS: dict[str, Any] = {"by_epoch": True, "max_epochs": 3, "val_interval": 1}
ITERATIONS: dict[str, Any] = {"by_epoch": False, "max_iters": 15, "val_interval": 5}


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True], ids=["whole", "stopped"])
@pytest.mark.parametrize("persistent", [False, True], ids=["anew", "persistent"])
@pytest.mark.parametrize("train_cfg", [EPOCHS, ITERATIONS], ids=["epochs", "iterations"])
def test_workers_end_with_the_run(
    tmp_path: Path, train_cfg: dict[str, Any], persistent: bool, stopped: bool
) -> None:
    workers: set[int | None] = set()

    def look(runner: Any) -> None:
        workers.update(worker.pid for worker in multiprocessing.active_children())
        if stopped:
            os.kill(os.getpid(), signal.SIGUSR1)

    options = {"num_workers": 2, "persistent_workers": persistent, "train_cfg": train_cfg}
    runner = toy_runner(tmp_path, Call("after_train_iter", 7, look), StopHook(), **options)
    with pytest.raises(TrainingStopped) if stopped else contextlib.nullcontext():
        runner.train()
    assert len(workers) >= 2
    assert not workers & {worker.pid for worker in multiprocessing.active_children()}
    if not stopped:
        assert runner.val()["toy/mean"] != 0, "the loader begins anew"
