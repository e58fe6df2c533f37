from __future__ import annotations

from pathlib import Path

import pytest

from mmkd.compare import processes
from mmkd.compare.processes import ToolError, call, last_words, where


@pytest.mark.parametrize(
    ("text", "epochs", "expected"),
    [
        ("", 5, ("starting", 0.0)),
        ("… Epoch(train)   [2][ 5/10]  lr: 1e-3\n… Epoch(val) [2][9/9]", 4, ("epoch 2/4", 0.375)),
        ("Epoch(train)  [3][10/10]", None, ("epoch 3", 0.0)),
        ("Iter(train) [  50/100]  loss\nIter(train) [  60/100]", None, ("iteration 60/100", 0.6)),
    ],
)
def test_where_a_training_is(text: str, epochs: int | None, expected: tuple[str, float]) -> None:
    assert where(text, epochs) == expected


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("a\n\nmmkd: error: What.\n  expected: x\n", 2, "What.\n  expected: x"),
        ("Traceback\nValueError: no\n", 1, "ValueError: no"),
        ("", 3, "exit code 3, and no output"),
        ("working\n", -9, "ended by signal 9 (out of memory?)"),
    ],
)
def test_last_words(text: str, code: int, expected: str) -> None:
    assert last_words(text, code) == expected


def fake_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    """A Python that does something else than a tool; the words after -c CODE are its arguments."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    monkeypatch.setattr(processes.sys, "executable", str(python))
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.02)


def test_call_follows_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_tool(monkeypatch, tmp_path, 'echo "Epoch(train) [1][1/2] $5"; sleep 0.5')
    log, seen = tmp_path / "a/train.log", []
    log.parent.mkdir()
    log.write_text("Epoch(train) [9][9/9] of an earlier call\n")
    call("train", ["config.py"], log, lambda *told: seen.append(told), 2)
    assert seen[-1] == ("epoch 1/2", 0.25)
    assert ("epoch 9/2", 1.0) not in seen
    assert "config.py" in log.read_text()


def test_failure_has_the_tools_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_tool(monkeypatch, tmp_path, "echo 'mmkd: error: No.' >&2; exit 2")
    with pytest.raises(ToolError, match="No."):
        call("test", [], tmp_path / "test.log")


def test_interrupt_ends_the_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_tool(
        monkeypatch, tmp_path, f"trap 'echo asked > {tmp_path}/asked; exit 143' TERM; echo; sleep 60 & wait"
    )

    def progress(note: str, share: float) -> None:
        if (tmp_path / "train.log").stat().st_size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call("train", [], tmp_path / "train.log", progress)
    assert (tmp_path / "asked").is_file()
