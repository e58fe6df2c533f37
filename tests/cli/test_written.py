from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmkd.cli.written import files_since, tell_of_files
from mmkd.terminal import short_output


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def test_kinds(tmp_path: Path) -> None:
    write(tmp_path, "old.pth")
    os.utime(tmp_path / "old.pth", (1, 1))
    write(
        tmp_path, "epoch_1.pth", "best_mAP_epoch_1.pth", "kd.py", "last_checkpoint", "metrics_val_last.json"
    )
    write(
        tmp_path,
        "t/t.log",
        "t/vis_data/scalars.json",
        "t/vis_data/t.json",
        "t/vis_data/config.py",
        "t/t.json",
    )
    write(tmp_path, "t/vis_data/vis_image/a_0.png", "t/vis_data/vis_image/b_0.png")
    found: Any = files_since(tmp_path, time.time())
    found = {kind: [str(path.relative_to(tmp_path)) for path in paths] for kind, paths in found.items()}
    assert found == {
        "best checkpoint": ["best_mAP_epoch_1.pth"],
        "checkpoint": ["epoch_1.pth"],
        "last and best metrics": ["metrics_val_last.json"],
        "losses and metrics by step": ["t/vis_data/scalars.json"],
        "log": ["t/t.log"],
        "metrics": ["t/t.json"],
        "config": ["kd.py"],
        "other files": ["t/vis_data/vis_image"],
    }


def test_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "out.pkl", "run/t/t.log", *(f"run/epoch_{number}.pth" for number in (8, 9, 10)))
    for number in (8, 9, 10):
        os.utime(tmp_path / f"run/epoch_{number}.pth", (2e9 + number, 2e9 + number))
    monkeypatch.chdir(tmp_path / "run/t")
    with short_output() as terminal:
        terminal.hidden = 3
        runner = SimpleNamespace(work_dir=str(tmp_path / "run"))
        tell_of_files(terminal, runner, time.time(), predictions=str(tmp_path / "out.pkl"))
    assert capsys.readouterr().out.splitlines() == [
        f"checkpoint   {tmp_path}/run/epoch_8.pth … epoch_10.pth (3)",
        "log          t.log (with 3 library warnings)",
        f"predictions  {tmp_path}/out.pkl",
    ]
