from __future__ import annotations

from mmengine.config import Config

from mmkd.compat import load_config
from mmkd.doctor.findings import Finding
from mmkd.doctor.teacher_predictions import load_teacher
from mmkd.doctor.teacher_scale import examine_scale, own_pipeline, rescaled
from mmkd.doctor.trial import Trial

from . import bccd


def examined(*damages: object) -> list[Finding]:
    setup = bccd.setup(*damages)  # type: ignore[arg-type]
    return list(examine_scale(Trial(setup, load_teacher(setup.teachers[0], "cpu"))))


def model_alone(cfg: Config) -> None:
    cfg.model.teacher.config = load_config("mmkd::bccd/teacher.py").model.to_dict()


def small_in_training(cfg: Config) -> None:
    cfg.train_dataloader.dataset.pipeline[2].scale = (80, 60)


def test_far_from_that_of_its_own_config() -> None:
    (finding,) = examined(bccd.smaller)
    assert finding.level == "error"
    assert "its config uses 4 times the image size" in finding.found
    assert "scale of Resize to (320, 240)" in finding.remedy


def test_its_own_is_not_known() -> None:
    (finding,) = examined(bccd.smaller, model_alone)
    assert finding.level == "error"
    assert "at 4 times the scale" in finding.found
    assert "(320, 240)" in finding.remedy


def test_only_training_is_on_another() -> None:
    right, wrong = examined(small_in_training)
    assert (right.level, wrong.level) == ("ok", "error")
    assert "objects in training are 0.2" in wrong.found
    assert "training pipeline to (320, 240)" in wrong.remedy


def test_own_pipeline() -> None:
    named = own_pipeline({"config": "mmkd::bccd/teacher.py"})
    assert named is not None
    assert [step["type"] for step in named] == ["LoadImageFromFile", "Resize", "PackDetInputs"]
    assert own_pipeline({"config": {"model": {}}}) is None
    assert own_pipeline({"type": "ATSS"}) is None


def test_rescaled() -> None:
    steps = [{"type": "LoadImageFromFile"}, {"type": "mmdet.Resize", "scale": (1333, 800)}]
    assert rescaled(steps, 0.5) == [steps[0], {"type": "mmdet.Resize", "scale": (666, 400)}]
    assert steps[1]["scale"] == (1333, 800)
    assert rescaled([{"type": "RandomResize", "scale": [(1, 2), (3, 4)]}], 2) is None
