from __future__ import annotations

from pathlib import Path

import pytest

from mmkd.cli import init

from ..project.test_dataset import few


def test_it_prints_a_page_and_writes_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few(tmp_path / "data", 4)
    monkeypatch.chdir(tmp_path)
    assert init.main(["mine", "--data", "data", "--format", "coco"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "data: COCO"
    assert len(lines) < 40
    assert any(line.strip() == "mmkd-train mine/teacher.py" for line in lines)
    assert Path("mine/kd.py").is_file()

    assert init.main(["mine", "--data", "data"]) == 2
    assert "mmkd: error: mine is not empty." in capsys.readouterr().err
