from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from mmkd.errors import UserError
from mmkd.export import OnnxDetector, export_onnx, images_of, training_images

from .conftest import Detector, real_images


def test_metadata(exported: Path) -> None:
    assert OnnxDetector(exported).facts == {
        "classes": ["Platelets", "RBC", "WBC"],
        "pixels": "rgb",
        "image_size": [320, 240],
        "score_thr": 0.05,
        "nms_iou_threshold": 0.6,
        "max_per_img": 100,
        "precision": "fp32",
    }


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precision(detector: Detector, exported: Path, tmp_path: Path, precision: Any) -> None:
    model, cfg, classes = detector
    out = tmp_path / "out.onnx"
    calibration = images_of(cfg, training_images(cfg)[:4])
    export_onnx(model, out, classes, precision=precision, calibration=calibration)
    assert out.stat().st_size < 0.6 * exported.stat().st_size
    kinds = {node.op_type for node in onnx.load(out).graph.node}
    assert ("QuantizeLinear" in kinds) == (precision == "int8")
    images_N3HW = real_images(cfg)
    for ours, theirs in zip(OnnxDetector(out)(images_N3HW), OnnxDetector(exported)(images_N3HW), strict=True):
        sure = int((theirs.scores > 0.5).sum())
        assert sure > 5
        assert abs(int((ours.scores > 0.5).sum()) - sure) <= 2


def test_int8_without_images(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images to calibrate"):
        export_onnx(detector[0], tmp_path / "out.onnx", "abc", precision="int8")
    assert not list(tmp_path.iterdir())
