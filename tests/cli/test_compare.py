from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from mmkd.cli import compare
from mmkd.compare import measure, report
from mmkd.compare.tables import main as tables

from ..test_end_to_end import FEW

STUDENT, KD = "configs/bccd/student.py", "configs/bccd/kd.py"


@pytest.mark.slow
def test_a_comparison_of_a_few_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "ROUNDS", 1)
    monkeypatch.setattr(report, "IMAGES_SHOWN", 1)
    few = [o for o in FEW if not o.startswith(("randomness", "test_"))]
    few = [*few, "train_cfg.max_epochs=1", "test_dataloader.num_workers=0"]
    argv = [STUDENT, KD, "--work-dir", str(tmp_path), "--evaluate", "val", "--cfg-options", *few]
    assert compare.main(argv) == 0
    results = tmp_path / "report/results.json"
    content = json.loads(results.read_text())
    assert [(run["recipe"], run["seed"]) for run in content["runs"]] == [
        ("teacher", None),
        ("student", 0),
        ("kd", 0),
    ]
    assert content["runs"][0]["metrics"]["coco/bbox_mAP"] > 0
    assert content["summary"][0]["parameters"] > 2 * content["summary"][1]["parameters"]
    assert content["summary"][1]["parameters"] == content["summary"][2]["parameters"]
    assert "loss_kd_cls" in (tmp_path / "report/losses.csv").read_text()
    assert (tmp_path / "report/index.html").stat().st_size > 50_000
    assert tables([str(results)]) == 0

    monkeypatch.setattr(report.Report, "write", lambda self: tmp_path / "page")
    capfd.readouterr()
    assert compare.main(argv) == 0
    said = capfd.readouterr().out
    assert "3 of 3 runs are finished already" in said
    assert "[1/" not in said, "nothing is made again"

    seen: dict[str, Any] = {}
    monkeypatch.setattr(report, "draw_folder", lambda images, members, folder: seen.update(members))
    assert compare.main([*argv, "--images", "data/bccd/images/val"]) == 0
    assert list(seen) == ["teacher", "student", "kd"]
    assert all(Path(config).is_file() and Path(weights).is_file() for config, weights in seen.values())
    assert f"{tmp_path / 'report/images'}: pictures of data/bccd/images/val" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plan.yaml", "--seeds", "1", "--name", "x"], "--name, --seeds: set it in the plan file"),
        ([STUDENT, KD, "--teacher-checkpoint", "a.pth"], "requires --teacher"),
        ([STUDENT, KD, "--evaluate", "train"], "invalid choice"),
        ([STUDENT, KD, "--share", "0.2"], "--share requires --probe"),
        ([STUDENT, KD, "--probe", "--report-only"], "no separate report"),
        ([STUDENT, KD, "--probe", "--images", "x"], "leave out --images"),
    ],
)
def test_wrong_words(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.parse_args(argv)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.yaml"], "Cannot read plan."),
        ([STUDENT], "Nothing to compare"),
        ([STUDENT, KD, "--rerun", "boxes"], "--rerun has no option boxes"),
        ([STUDENT, KD, "--report-only"], "has results"),
        ([STUDENT, KD, "--images", "nowhere"], "Cannot read `--images`"),
        ([STUDENT, KD, "--probe", "--share", "2"], "--share is out of range"),
        ([STUDENT, "configs/bccd/new_classes.py"], "model, data or budget differs"),
    ],
)
def test_mistakes(argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([*argv, "--work-dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pandas" else real(name, *a)
    )
    assert compare.main([STUDENT, KD, "--work-dir", str(tmp_path)]) == 2
    assert "a comparison needs pandas: pip install pandas (or 'mmkd[compare]')" in capsys.readouterr().err


def test_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    outcome: list[Any] = [KeyboardInterrupt(), 3, 0]

    def work(_: Any) -> int:
        result = outcome.pop(0)
        if isinstance(result, BaseException):
            raise result
        return int(result)

    monkeypatch.setattr(compare, "compare", work)
    assert [compare.main([STUDENT, KD]) for _ in range(3)] == [130, 1, 0]
    assert "rerun the same command to continue" in capsys.readouterr().err
