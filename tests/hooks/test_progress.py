from __future__ import annotations

import contextlib
import os
import pty
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmkd.hooks import ProgressHook
from mmkd.hooks.progress import _metric, _parts
from mmkd.terminal import short_output

from .toy import Call, toy_runner

METRIC = r"mean -?[\d.]+"


@contextmanager
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """A pseudo-terminal as standard output; what is given holds all that was written, afterwards."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    ours, theirs = pty.openpty()
    written: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 4096):
                written.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        yield written
        monkeypatch.undo()
    reader.join(10)
    os.close(ours)


def train(folder: Path, *hooks: Any, log_level: str = "INFO", **options: Any) -> None:
    toy_runner(folder, ProgressHook(), *hooks, log_level=log_level, **options).train()


def test_block_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmkd.hooks.progress._SECONDS", 0)
    with screen(monkeypatch) as written, short_output():
        train(tmp_path, Call("after_train_iter", 4, lambda runner: runner.logger.info("mine")))
    text = b"".join(written).decode()
    assert "epoch 1/3, batch 1/5" in text
    assert "validation, batch 2/2" in text
    assert re.search(r"loss [\d.]+", text)
    last = text.split("training finished")[-1]
    assert "100 %" in last
    assert re.search(METRIC, last)
    assert "mine" in text
    assert "Epoch(train)" not in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is shown again"
    (log,) = tmp_path.rglob("*.log")
    assert "Epoch(train)" in log.read_text()


def test_plain_lines_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with short_output():
        train(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5, lines
    assert re.match(r"epoch 1/3, batch 3/5; loss [\d.]+; .*left$", lines[0])
    assert re.match(rf"epoch 2/3, batch 1/5; loss [\d.]+; {METRIC}; [\d.]+ s a step, data \d+ %", lines[1])
    assert re.match(rf"training finished; loss [\d.]+; {METRIC}; ", lines[-1])


def test_iterations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_iter = {"by_epoch": False, "max_iters": 10, "val_interval": 10}
    with short_output():
        train(tmp_path, train_cfg=by_iter, log_processor={"by_epoch": False})
    assert capsys.readouterr().out.startswith("iteration 2/10; loss ")


def test_long_without_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.hooks.progress._SILENCE", 0)
    with short_output():
        train(tmp_path)
    assert len(capsys.readouterr().out.splitlines()) == 15


def test_verbose_shows_mmengines_lines_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with short_output(verbose=True):
        train(tmp_path)
    out = capsys.readouterr().out
    assert "Epoch(train)" in out
    assert "training finished" not in out


def test_in_a_program_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    train(tmp_path)
    assert sys.stdout is before
    out = capsys.readouterr().out
    assert "System environment" in out, "the Runner was built before training began"
    assert "Epoch(train)" not in out
    assert "training finished" in out


def test_the_best_of_a_metric(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path)
    assert _metric(runner) == ""
    for value in (0.25, 0.5, 0.375):
        runner.message_hub.update_scalar("val/coco/bbox_mAP_50", 0.9)
        runner.message_hub.update_scalar("val/coco/bbox_mAP", value)
    assert _metric(runner) == "mAP 0.375, best 0.500"


@pytest.mark.parametrize(
    ("means", "parts"),
    [
        ({"loss": 3.0, "loss_kd_a": 1.0, "loss_cls": 2.0}, {"cls": 2.0, "kd_a": 1.0}),
        ({"loss": 3.0, "loss_cls": 1.0, "d0.loss_cls": 2.0}, {"cls": 1.0, "other": 2.0}),
        ({"loss": 3.0}, {}),
        ({"loss": float("nan"), "loss_cls": float("nan")}, None),
    ],
)
def test_parts_of_the_loss(means: dict[str, float], parts: dict[str, float] | None) -> None:
    found = _parts(means)
    assert list(found) == list(parts if parts is not None else ["cls"])
    assert parts is None or found == parts
