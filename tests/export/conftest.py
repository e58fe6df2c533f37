"""A detector and its ONNX file, for all tests here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmkd.export import export_onnx, image_size, images_of, load_student

TEACHER = "data/bccd/teacher_atss_r18_narrow.pth"
IMAGES = sorted(map(str, Path("data/bccd/images/val").glob("*.jpg")))[:3]
Detector = tuple[Any, Any, tuple[str, ...]]


@pytest.fixture(scope="package")
def detector() -> Detector:
    return load_student(TEACHER, "configs/bccd/teacher.py")


@pytest.fixture(scope="package")
def exported(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, cfg, classes = detector
    out = tmp_path_factory.mktemp("onnx") / "teacher.onnx"
    export_onnx(model, out, classes, image_size=image_size(cfg))
    return out


def real_images(cfg: Any) -> Tensor:
    return torch.stack(list(images_of(cfg, IMAGES)))
