from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import Config

from mmkd.doctor import examine
from mmkd.doctor.agreement import Agreement
from mmkd.doctor.setup import TrainingSetup
from mmkd.doctor.teacher import compared, examine_teachers
from mmkd.registry import TEACHERS
from mmkd.teachers import Teacher

from . import bccd


def seen(ap: float) -> Agreement:
    return Agreement(ap=ap, ap_best=ap, recall=1, matched=9, right=1, order={})


@pytest.mark.parametrize(
    ("ap", "images", "expected", "level"),
    [
        (0.40, 200, 0.415, "ok"),
        (0.45, 200, 0.415, "ok"),
        (0.33, 200, 0.415, "ok"),  # by chance
        (0.30, 200, 0.415, "warning"),
        (0.20, 200, 0.415, "error"),
        (0.20, 8, 0.415, "ok"),  # of so few images little follows
        (0.10, 8, 0.415, "error"),
        (0.20, 200, None, "ok"),
        (0.10, 200, None, "warning"),
        (0.01, 200, None, "error"),
    ],
)
def test_compared(ap: float, images: int, expected: float | None, level: str) -> None:
    finding = compared(seen(ap), images, expected, "the zoo gives" if expected else "")
    assert finding.level == level
    assert ("the zoo gives 0.415" in finding.found) is (expected is not None)


def test_random_weights_are_not_scored() -> None:
    def damage(cfg: Config) -> None:
        cfg.model.teacher.checkpoint = None

    (section,) = examine(bccd.setup(damage), ["teacher"])
    (warning,) = bccd.seen([section])
    assert "weights random" in warning.found


def test_a_student_that_inherits_from_other_pixels() -> None:
    def damage(cfg: Config) -> None:
        cfg.model.inherit = ["neck"]
        cfg.model.data_preprocessor.bgr_to_rgb = False
        cfg.val_dataloader.dataset.ann_file = "nothere.json"  # and nothing is scored

    (section,) = examine(bccd.setup(damage), ["teacher"])
    assert any("inherits neck" in finding.remedy for finding in bccd.seen([section], "warning"))


@pytest.mark.parametrize(
    ("teacher", "found"),
    [
        ({"ema": {}}, "moving average of the student"),
        ([{"type": "NoDetector"}, {"ema": {}}], "not a trained detector: not checked"),
        (None, "none in the config"),
    ],
)
def test_teachers_that_are_no_detectors(teacher: Any, found: str) -> None:
    @TEACHERS.register_module()
    class NoDetector(Teacher):
        answer: Any = None

    try:
        setup = TrainingSetup(Config({"model": {"type": "KDSingleStageDetector", "teacher": teacher}}))
        assert [(one.level, one.found) for one in examine_teachers(setup)] == [("ok", found)]
    finally:
        TEACHERS.module_dict.pop("NoDetector")
