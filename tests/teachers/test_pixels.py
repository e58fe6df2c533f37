from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from mmdet.models import DetDataPreprocessor

from mmkd.teachers.pixels import Renormalizer

from ..conftest import batch

IMAGENET = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
CAFFE = {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0]}
KINDS = [
    {**IMAGENET, "bgr_to_rgb": True},
    {**CAFFE, "bgr_to_rgb": False},
    {"bgr_to_rgb": False, "pad_value": 114},
    {**IMAGENET, "bgr_to_rgb": False, "pad_value": 1.5},
    {"mean": [127.0], "std": [128.0], "bgr_to_rgb": True},
]


@pytest.mark.parametrize(("student", "teacher"), list(product(KINDS, KINDS)))
def test_equals_the_teachers_own_preprocessing(student: dict[str, Any], teacher: dict[str, Any]) -> None:
    shapes = [(40, 64), (64, 50)]
    data = batch(*shapes)
    of_student = DetDataPreprocessor(**student, pad_size_divisor=32)
    of_teacher = DetDataPreprocessor(**teacher, pad_size_divisor=32)
    seen = of_student({"inputs": list(data["inputs"]), "data_samples": data["data_samples"]})["inputs"]
    own = of_teacher({"inputs": list(data["inputs"]), "data_samples": data["data_samples"]})["inputs"]
    pixels = Renormalizer(of_student, of_teacher)
    torch.testing.assert_close(pixels(seen, shapes), own, rtol=1e-5, atol=2e-4)
    assert pixels.is_identity == (student == teacher)
    if student == teacher:
        assert pixels(seen, shapes) is seen
