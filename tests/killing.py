"""Kill a training again and again and look at what is left; forks of an interpreter with nothing else in it.

python -m tests.killing FOLDER KILLS
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import init_default_scope

from mmkd.hooks import (
    DistillScheduleHook,
    DistillStateHook,
    ReproducibleHook,
    ResumeHook,
    StopHook,
)

from .conftest import save_teacher, tiny_teacher
from .hooks.kd_runner import kd_model, kd_runner

EPOCHS = 4
DISTILL = {
    "cls": {"type": "DistillationLoss"},
    "neck": {"type": "FitNetsLoss", "loss_weight": 0.1},  # has layers of its own
    "masks": {"type": "MGDLoss", "loss_weight": 1e-4},  # draws random numbers
}


class Slow(Hook):
    """Gives the parent time to kill in the midst of a step, and tells what is safe."""

    priority = "LOWEST"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        (self.folder / "step").write_text(str(runner.iter + 1))

    def after_train_epoch(self, runner: Any) -> None:
        with (self.folder / "saved").open("a") as file:
            file.write(f"{runner.epoch + 1}\n")


def train(folder: Path, teacher: str, resume: bool) -> Any:
    hooks = [
        EMAHook(),
        DistillScheduleHook("cls", kind="linear", end=0.1),
        DistillStateHook(),
        ReproducibleHook(),
        StopHook(),
        ResumeHook(),
        Slow(folder),
    ]
    saving = {"type": "mmdet.DurableCheckpointHook", "interval": 1, "max_keep_ckpts": 1}
    runner = kd_runner(
        folder,
        kd_model(teacher, distill=DISTILL),
        *hooks,
        epochs=EPOCHS,
        resume=resume,
        default_hooks={"checkpoint": saving, "logger": {"type": "LoggerHook", "interval": 1}},
        param_scheduler={"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 9},
    )
    runner.train()
    return runner


def in_a_fork(folder: Path, teacher: str, slow_disk: bool) -> int:
    """Begin or go on in a child; returns its number."""
    child = os.fork()
    if child:
        return child
    try:
        if slow_disk:  # most of the time is spent between the first byte of a file and its name
            fsync = os.fsync
            os.fsync = lambda number: (time.sleep(0.15), fsync(number))[1]  # type: ignore[assignment]
        with (folder / "log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            train(folder, teacher, resume=True)
        os._exit(0)
    except BaseException:
        import traceback

        with (folder / "log").open("a") as log:
            traceback.print_exc(file=log)
        os._exit(1)


def weights(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(path)
    return {
        **checkpoint["state_dict"],
        **{f"ema {key}": value for key, value in checkpoint["ema_state_dict"].items()},
        **{f"distill {key}": value for key, value in checkpoint["distill_state"].items()},
    }


def kill_and_resume(tmp_path: Path, most: int) -> None:
    """Weights, EMA and the losses' own layers must be those of the uninterrupted run, bit for bit."""
    teacher = save_teacher(tmp_path / "teacher.pth", tiny_teacher())
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    started = time.monotonic()
    assert os.waitpid(in_a_fork(whole, teacher, slow_disk=False), 0)[1] == 0, (whole / "log").read_text()
    length = time.monotonic() - started

    generator = random.Random(0)
    kills, in_writing, rounds = 0, 0, 1
    while kills < most:
        writing = kills % 2 == 1
        if writing:  # else what an earlier kill left is there, as it would be
            for path in killed.glob("*.tmp"):
                path.unlink()
        child = in_a_fork(killed, teacher, slow_disk=writing)
        wait = generator.uniform(0.05, 0.9) * length
        ended = until_written(child, killed, wait) if writing else until(child, time.monotonic() + wait)
        if ended:  # all over again, from the beginning
            assert_equal(whole, killed)
            for path in filter(Path.is_file, killed.glob("*")):
                path.unlink()
            rounds += 1
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        in_writing += writing and bool(list(killed.glob("*.tmp")))
        saved = (killed / "saved").read_text().split() if (killed / "saved").exists() else []
        if saved:
            newest = torch.load((killed / "last_checkpoint").read_text())
            assert newest["meta"]["epoch"] >= max(map(int, saved)), "what was saved is there"
    assert in_writing, "some came in the midst of a writing"
    child = in_a_fork(killed, teacher, slow_disk=False)
    assert os.waitpid(child, 0)[1] == 0, (killed / "log").read_text()[-3000:]
    assert_equal(whole, killed)
    print(f"{kills} kills, {in_writing} of them while a file was written, {rounds} runs to the end")


def until(child: int, deadline: float) -> bool:
    """Wait; returns whether the child has ended first."""
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    return False


def until_written(child: int, folder: Path, after: float) -> bool:
    """Wait for a file that is half written, some time later; returns whether the child has ended first."""
    if until(child, time.monotonic() + after / 2):
        return True
    while not list(folder.glob("*.tmp")):
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    return False


def assert_equal(whole: Path, other: Path) -> None:
    expected, found = (weights(folder / f"epoch_{EPOCHS}.pth") for folder in (whole, other))
    assert expected.keys() == found.keys()
    assert any(key.startswith("distill ") for key in expected)
    different = [key for key in expected if not torch.equal(expected[key], found[key])]
    assert not different, f"{len(different)} of {len(expected)} differ: {different[:5]}\n"


if __name__ == "__main__":
    torch.set_num_threads(1)  # a pool of threads does not outlive a fork
    init_default_scope("mmdet")
    kill_and_resume(Path(sys.argv[1]), int(sys.argv[2]))
