from __future__ import annotations

from typing import Any

import pytest
from mmdet.models.detectors import ATSS, FasterRCNN

import mmkd
from mmkd import UserError
from mmkd.detectors.kinds import check_single_stage, check_student
from mmkd.registry import MODELS


@pytest.mark.parametrize("kind", [ATSS, FasterRCNN])
def test_detectors_can_learn(kind: type) -> None:
    assert check_student(kind, kind.__name__) is kind


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FPN", "not a registered detector[\\s\\S]*ATSS.*[\\s\\S]*'FPN'"),
        ("SoftTeacher", "SoftTeacher is not supported as a student: it has its own teacher"),
        ("LAD", "LAD is not supported as a student: it has its own teacher"),
        ("Detectron2Wrapper", "its features are inside Detectron2"),
    ],
)
def test_who_cannot(name: str, message: str) -> None:
    assert mmkd.KDDetector  # mmdet's detectors are registered
    with pytest.raises(UserError, match=message):
        check_student(MODELS.get(f"mmdet.{name}"), name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roi_head", "rpn_head"}, "not a single-stage detector[\\s\\S]*set type='KDDetector'"),
        ({"teacher_ckpt"}, "it has its own teacher \\(teacher_ckpt\\)"),
    ],
)
def test_options_of_other_detectors(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_single_stage(options)
    check_single_stage({"nonsense"})
