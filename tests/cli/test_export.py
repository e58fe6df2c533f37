from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmkd.cli.export import main
from mmkd.deployment import write_deployable
from mmkd.export import OnnxDetector

from ..conftest import build, tiny_atss

TEACHER = "data/bccd/teacher_atss_r18_narrow.pth"


def test_what_was_published_is_exported_with_the_config_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = tmp_path / "student.pth"
    write_deployable(TEACHER, student, half=True, config="configs/bccd/teacher.py")
    assert main([str(student), "--onnx", "--pixels", "bgr"]) == 0
    assert "student.onnx: fp32, 3 classes" in capsys.readouterr().out
    facts = OnnxDetector(tmp_path / "student.onnx").facts
    assert (facts["classes"], facts["pixels"]) == (["Platelets", "RBC", "WBC"], "bgr")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "configs/bccd/teacher.py"], "does not fit"),
        ([], "Cannot read the student's config"),
    ],
)
def test_mistakes(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": build(tiny_atss()).state_dict(), "meta": {}}, tmp_path / "other.pth")
    assert main([str(tmp_path / "other.pth"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "other.onnx").exists()


def test_images_without_int8(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([TEACHER, "--images", "data/bccd/images/val"])
    assert "--images are for calibration: add --int8" in capsys.readouterr().err
