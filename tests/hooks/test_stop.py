from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import EMAHook

from mmkd import StopHook, UserError
from mmkd.hooks import ResumeHook, TrainingStopped

from .toy import Call, toy_runner


def interrupt(number: int) -> Any:
    return lambda runner: os.kill(os.getpid(), number)


def stopped(runner: Any) -> int:
    with pytest.raises(TrainingStopped) as stop:
        runner.train()
    return int(stop.value.code)


@pytest.mark.parametrize(
    ("where", "at"),
    [
        ("after_train_iter", 1),
        ("before_train_iter", 7),  # the second batch of the second epoch is still done
        ("after_train_iter", 10),  # the last batch of an epoch
        ("after_val_iter", 1),
        ("after_val_iter", 6),  # in the last validation
    ],
)
@pytest.mark.parametrize("ema", [False, True])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    tmp_path: Path, where: str, at: int, ema: bool
) -> None:
    more = [EMAHook()] if ema else []
    whole = toy_runner(tmp_path / "whole", *more)
    whole.train()

    folder = tmp_path / "interrupted"
    first = toy_runner(folder, *more, Call(where, at, interrupt(signal.SIGUSR1)), StopHook())
    assert stopped(first) == 128 + signal.SIGUSR1
    assert (folder / "last_checkpoint").read_text() == str(folder / "interrupted.pth")
    more = [EMAHook()] if ema else []
    validations = Call("after_val_epoch", 0, None)
    second = toy_runner(folder, *more, validations, StopHook(), ResumeHook(), resume=True)
    second.train()

    assert first.model.seen + second.model.seen == whole.model.seen
    torch.testing.assert_close(second.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert (second.iter, second.epoch) == (15, 3)
    if where == "after_val_iter":
        assert validations.count == 3 - (at - 1) // 2, "the interrupted validation was done again"
    if second.model.seen:
        assert not (folder / "interrupted.pth").exists(), "later checkpoints have replaced it"
    assert not (folder / "interrupted.pth.tmp").exists()


@pytest.mark.parametrize("sweep", [False, True])
def test_a_stop_is_no_failure_in_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep: bool
) -> None:
    monkeypatch.setenv("MMKD_SWEEP", "yes" if sweep else "")
    runner = toy_runner(tmp_path, Call("after_train_iter", 3, interrupt(signal.SIGTERM)), StopHook())
    before = signal.getsignal(signal.SIGTERM)
    assert stopped(runner) == (0 if sweep else 128 + signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert torch.load(tmp_path / "interrupted.pth")["meta"]["iter"] == 3


def test_preemption_outranks_a_stop(tmp_path: Path) -> None:
    hook = StopHook()
    hook.request(0, "one")
    hook.request(138, "other")
    hook.request(0, "one again")
    assert (hook.exit_code, hook.reason) == (138, "other")


def test_an_iteration_based_run_goes_on(tmp_path: Path) -> None:
    cfg: dict[str, Any] = {"train_cfg": {"by_epoch": False, "max_iters": 12, "val_interval": 4}}
    whole = toy_runner(tmp_path / "whole", **cfg)
    whole.train()
    folder = tmp_path / "interrupted"
    first = toy_runner(folder, Call("after_train_iter", 3, interrupt(signal.SIGUSR1)), StopHook(), **cfg)
    stopped(first)
    second = toy_runner(folder, StopHook(), resume=True, **cfg)
    second.train()
    assert first.model.seen + second.model.seen == whole.model.seen
    torch.testing.assert_close(second.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_another_batch_count_begins_the_epoch_again(tmp_path: Path) -> None:
    first = toy_runner(tmp_path, Call("after_train_iter", 7, interrupt(signal.SIGUSR1)), StopHook())
    stopped(first)
    second = toy_runner(tmp_path, StopHook(), resume=True, batch_size=5)
    second.train()
    assert [len(samples) for samples in second.model.seen] == [5] * 4


def test_resuming_a_whole_epoch_skips_nothing(tmp_path: Path) -> None:
    toy_runner(tmp_path, StopHook(), epochs=1).train()
    second = toy_runner(tmp_path, StopHook(), resume=True, epochs=2)
    second.train()
    assert len(second.model.seen) == 5


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, StopHook(), epochs=1)
    thread = threading.Thread(target=runner.train)
    thread.start()
    thread.join()
    assert runner.iter == 5


def test_a_test_run_is_not_stopped_by_training_rules(tmp_path: Path) -> None:
    hook = StopHook()
    runner = toy_runner(tmp_path, hook)
    hook.request(0, "never mind")
    assert runner.val()["toy/mean"] == pytest.approx(0)


def test_unknown_and_double_signals_are_refused() -> None:
    with pytest.raises(UserError, match="SIGTREM"):
        StopHook(stop_signals=["SIGTREM"])
    with pytest.raises(UserError, match="SIGTERM in both"):
        StopHook(["SIGTERM"], ["SIGTERM"])
    with pytest.raises(UserError, match="lists of signals"):
        StopHook(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"SIGTERM": 0, "SIGUSR1": 138, "SIGINT": 130}),
        ({"preempt_signals": ["SIGTERM"]}, {"SIGTERM": 143}),
        ({"stop_signals": ["SIGUSR1"]}, {"SIGUSR1": 0, "SIGTERM": 143, "SIGINT": 130}),
        ({"stop_signals": [], "preempt_signals": []}, {}),
    ],
)
def test_meanings_in_a_sweep(monkeypatch: pytest.MonkeyPatch, given: Any, expected: Any) -> None:
    monkeypatch.setenv("MMKD_SWEEP", "yes")
    assert {number.name: code for number, code in StopHook(**given).exit_codes.items()} == expected


@pytest.mark.parametrize(
    ("where", "at", "said"),
    [
        ("before_train_iter", 1, "at epoch 1, after iteration 1;"),
        ("after_train_iter", 3, "at epoch 1, after iteration 3;"),
        ("after_val_iter", 1, "in a validation, after iteration 5;"),
        ("after_val_iter", 6, "in a validation, after iteration 15;"),
    ],
)
def test_ctrl_c_writes_a_checkpoint_and_its_last_line_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, at: int, said: str
) -> None:
    runner = toy_runner(tmp_path, Call(where, at, interrupt(signal.SIGINT)), StopHook())
    lines: list[str] = []
    monkeypatch.setattr(runner.logger, "info", lambda line, *_: lines.append(str(line)))
    assert stopped(runner) == 130
    saved = tmp_path / "interrupted.pth"
    assert lines[-1] == f"training stopped early (SIGINT) {said} use --resume to continue from {saved}"
    assert saved.is_file()


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    def twice(runner: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    runner = toy_runner(tmp_path, Call("after_train_iter", 3, twice), StopHook())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert not (tmp_path / "interrupted.pth").exists()


def test_processes_that_an_evaluator_forks_can_be_ended(tmp_path: Path) -> None:
    """mmdet's VOCMetric ends a pool by SIGTERM and waits for it."""
    codes = []

    def wait(begun: Any) -> None:
        begun.send(True)
        time.sleep(60)

    def fork(runner: Any) -> None:
        begun, told = get_context("fork").Pipe(duplex=False)
        child = get_context("fork").Process(target=wait, args=(told,))
        child.start()
        assert begun.recv()
        child.terminate()
        child.join(20)
        codes.append(child.exitcode)
        child.kill()

    toy_runner(tmp_path, StopHook(), Call("after_train_iter", 1, fork)).train()
    assert codes == [-signal.SIGTERM]
