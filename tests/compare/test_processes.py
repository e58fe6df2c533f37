from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmkd.compare import processes
from mmkd.compare.processes import Position, ToolError, call, last_words


def log(folder: Path, attempt: str, rows: list[dict[str, float]]) -> None:
    data = folder / attempt / "vis_data"
    data.mkdir(parents=True)
    (data / "scalars.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def of_epochs(last: int) -> list[dict[str, float]]:
    """Ten iterations in each of two epochs, and a validation."""
    rows = [{"loss": 1.0, "epoch": (step - 1) // 10 + 1, "step": step} for step in range(5, last + 1, 5)]
    return [*rows, {"coco/bbox_mAP": 0.1, "step": 1}]


def test_where_a_training_is(tmp_path: Path) -> None:
    position = Position(tmp_path, {"type": "EpochBasedTrainLoop", "max_epochs": 4})
    assert position() == ("starting", 0.0)
    log(tmp_path, "1", of_epochs(5))
    assert position() == ("epoch 1/4", 0.0), "how long an epoch is shows at its end"
    log(tmp_path, "2", of_epochs(15))
    assert position() == ("epoch 2/4", 0.375)
    assert Position(tmp_path, {"max_iters": 60})() == ("iteration 15/60", 0.25)
    log(tmp_path, "3", of_epochs(5))
    assert position()[0] == "epoch 1/4", "it was resumed from before"


def test_a_log_is_not_read_again(tmp_path: Path) -> None:
    position = Position(tmp_path, {"max_iters": 20})
    log(tmp_path, "1", of_epochs(15))
    assert position() == ("iteration 15/20", 0.75)
    file = tmp_path / "1/vis_data/scalars.json"
    size = file.stat().st_size
    file.write_text("-" * size + json.dumps({"loss": 1.0, "step": 20}) + "\n")
    assert position() == ("iteration 20/20", 1.0)


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


def test_call_watches_while_the_tool_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_tool(monkeypatch, tmp_path, f"echo $5; while [ ! -e {tmp_path}/seen ]; do sleep 0.02; done")
    log = tmp_path / "a/train.log"
    log.parent.mkdir()
    log.write_text("an earlier call\n")
    call("train", ["config.py"], log, (tmp_path / "seen").touch)
    assert log.read_text() == "an earlier call\nconfig.py\n"


def test_failure_has_the_tools_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_tool(monkeypatch, tmp_path, "echo 'mmkd: error: No.' >&2; exit 2")
    with pytest.raises(ToolError, match="No."):
        call("test", [], tmp_path / "test.log")


def test_interrupt_ends_the_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_tool(
        monkeypatch, tmp_path, f"trap 'echo asked > {tmp_path}/asked; exit 143' TERM; echo; sleep 60 & wait"
    )

    def watch() -> None:
        if (tmp_path / "train.log").stat().st_size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call("train", [], tmp_path / "train.log", watch)
    assert (tmp_path / "asked").is_file()
