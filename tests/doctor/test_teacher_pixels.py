from __future__ import annotations

from typing import Any

import pytest

from mmkd.doctor import teacher_pixels
from mmkd.doctor.findings import Finding
from mmkd.doctor.teacher_predictions import load_teacher
from mmkd.doctor.trial import Trial

from . import bccd

USUAL = {"torchvision": teacher_pixels.NORMALISATIONS["torchvision"]}


def examined(monkeypatch: pytest.MonkeyPatch, usual: Any = USUAL, **pixels: Any) -> list[Finding]:
    monkeypatch.setattr(teacher_pixels, "NORMALISATIONS", usual)
    setup = bccd.setup(bccd.teacher_pixels(**pixels))
    return list(teacher_pixels.examine_pixels(Trial(setup, load_teacher(setup.teachers[0], "cpu"))))


def test_red_and_blue_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = examined(monkeypatch, {}, bgr_to_rgb=False)
    assert finding.level == "error"
    assert "with red and blue swapped" in finding.found
    assert "data_preprocessor=dict(bgr_to_rgb=True)" in finding.remedy


def test_other_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = examined(monkeypatch, mean=[103.53, 116.28, 123.675], std=[1, 1, 1], bgr_to_rgb=False)
    assert finding.level == "error"
    assert "as for torchvision" in finding.found
    assert "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True" in finding.remedy


def test_the_usual_ways_are_all_different() -> None:
    ways = [
        {"mean": list(mean), "std": list(std), "bgr_to_rgb": rgb}
        for mean, std, rgb in teacher_pixels.NORMALISATIONS.values()
    ]
    for number, way in enumerate(ways):
        assert not any(teacher_pixels.same_pixels(way, other) for other in ways[:number])
    assert teacher_pixels.same_pixels({"bgr_to_rgb": True}, {"rgb_to_bgr": True})
