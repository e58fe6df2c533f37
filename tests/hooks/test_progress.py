from __future__ import annotations

import io
import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mmkd.hooks import ProgressHook


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def runner() -> Any:
    logger = logging.getLogger("progress-test")
    logger.handlers = [logging.StreamHandler(sys.stdout)]
    logger.setLevel(logging.INFO)
    return SimpleNamespace(max_iters=4, iter=1, epoch=0, max_epochs=2, logger=logger)


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    hook, run = ProgressHook(momentum=0.5), runner()
    original = run.logger.handlers[0]
    hook.before_train(run)
    hook.after_train_iter(run, 0, outputs={"loss": 4.0})
    hook.after_train_iter(run, 1, outputs={"loss": float("nan")})  # of a step that a loss scaler left out
    hook.after_train_iter(run, 1, outputs={"loss": 2.0})
    run.logger.info("a line of the log")
    hook.after_run(run)
    text = screen.getvalue()
    assert "epoch 1/2" in text
    assert "4/4" in text
    assert "loss=3.0000" in text, "running average of 4 and 2"
    assert "a line of the log" in text
    assert run.logger.handlers == [original]


def test_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    hook = ProgressHook()
    hook.before_train(runner())
    hook.after_train_iter(runner(), 0, outputs={"loss": 4.0})
    hook.after_run(runner())
    assert screen.getvalue() == ""


def test_bad_momentum() -> None:
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        ProgressHook(momentum=0)
