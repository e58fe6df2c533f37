from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mmkd.cli.demo import format_table, main
from mmkd.cli.pictures import Result
from mmkd.teachers import plain_detector

from ..conftest import tiny_atss
from ..test_end_to_end import FEW


@pytest.mark.slow
def test_whole_demo_on_a_few_images(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = [o for o in FEW if not o.startswith("randomness")]
    argv = ["--work-dir", str(tmp_path), "--cfg-options", *few, "train_cfg.max_epochs=1"]
    assert main(argv) == 0
    table = (tmp_path / "table.md").read_text()
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| teacher", "| student", "| distilled"]
    assert float(rows[0][1]) > 0.5, "the shipped teacher is a good one"
    assert rows[1][3] == rows[2][3], "the same student"
    assert float(rows[0][3].split()[0]) > 2 * float(rows[1][3].split()[0])
    said = capfd.readouterr().out
    assert table.strip() in said
    assert len(said.splitlines()) <= 30, said
    for name in ("curves.png", "detections.png"):
        assert min(Image.open(tmp_path / name).size) > 400

    assert main(argv) == 0
    assert "tools/train.py" not in capfd.readouterr().out, "a second call skips what is there"


@pytest.mark.slow
def test_failed_step_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["test_dataloader.dataset.data_root=nowhere/"]
    assert main(["--work-dir", str(tmp_path), "--cfg-options", *options]) == 2
    assert "test.py did not finish" in capfd.readouterr().err


def test_step_time_is_a_ratio() -> None:
    metrics = {"coco/bbox_mAP": 0.5, "coco/bbox_mAP_50": 0.75}
    model = plain_detector(tiny_atss())
    results = [
        Result("teacher", model, "", metrics),
        Result("student", model, "", metrics, [(1, 0.5)], 2.0),
        Result("distilled", model, "", metrics, [(1, 0.5)], 3.0),
    ]
    lines = format_table(results).splitlines()
    assert lines[2].endswith("|  |")
    assert lines[3].endswith("| 1.00 × |")
    assert lines[4].endswith("| 1.50 × |")
    assert "| 0.500 | 0.750 |" in lines[2]
