from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.config import Config

from mmkd.doctor import Case, Finding, examine
from mmkd.losses import DistillationLoss

from . import bccd


def examined(case: Case) -> tuple[dict[str, Finding], dict[str, Finding]]:
    step, memory = examine(case, ["training step", "memory"])
    return {one.what: one for one in step.findings}, {one.what: one for one in memory.findings}


def two_images(cfg: Config) -> None:
    cfg.train_dataloader.batch_size = 2


def test_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    case = bccd.case(two_images)
    step, memory = examined(case)
    assert {one.level for one in [*step.values(), *memory.values()]} == {"ok"}
    assert "loss_kd_cls" in step["losses"].found
    assert "all 111 trainable parameters" in step["gradients"].found
    assert "times the task's, cosine" in step["distill.cls"].found
    kept = case.step_memory
    assert kept is not None
    student = case.model()
    assert kept.parameters == kept.gradients == sum(4 * p.numel() for p in student.parameters())
    assert kept.optimizer == pytest.approx(2 * kept.parameters, rel=0.01)  # Adam's two moments
    assert kept.activations > kept.inputs > 0
    assert kept.teacher > 0
    assert kept.teacher_layers > 0
    monkeypatch.setattr("mmkd.doctor.memory.free_bytes", lambda _: 10**6)
    (again,) = examine(case, ["memory"])
    assert bccd.seen([again])[0].what == "peak"


def test_a_loss_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        DistillationLoss, "forward", lambda self, student, *_: student.cls_logits[0].sum() * torch.nan
    )
    step, memory = examined(bccd.case(two_images))
    assert step["losses"].level == "error"
    assert "not finite: loss_kd_cls" in step["losses"].found
    assert memory["memory"].found == "not examined: no training step was made"


@pytest.mark.parametrize(("weight", "word"), [(1e4, "drowns the task"), (1e-4, "hardly takes part")])
def test_balance(weight: float, word: str) -> None:
    def damage(cfg: Config) -> None:
        two_images(cfg)
        cfg.model.distill.cls.loss_weight = weight

    finding = examined(bccd.case(damage))[0]["distill.cls"]
    assert finding.level == "warning"
    assert word in finding.found
    assert f"instead of {weight:.3g}" in finding.remedy


def test_a_parameter_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    case = bccd.case(two_images)
    case.model().neck.register_parameter("idle", torch.nn.Parameter(torch.zeros(3)))
    finding = examined(case)[0]["gradients"]
    assert finding.level == "warning"
    assert "neck.idle" in finding.found


def test_weights_that_cannot_be_had() -> None:
    def damage(cfg: Config) -> None:
        two_images(cfg)
        cfg.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": "nothere.pth"}

    step, _ = examined(bccd.case(damage))
    assert step["initial weights"].level == "error"
    assert step["losses"].level == "ok"


def test_the_average_of_the_student_itself() -> None:
    def damage(cfg: Config) -> None:
        two_images(cfg)
        cfg.model.teacher = {"ema": {"momentum": 0.001}}

    case = bccd.case(damage)
    step, _ = examined(case)
    assert {one.level for one in step.values()} == {"ok"}
    (teacher,) = examine(case, ["teacher"])[0].findings
    assert teacher.found == "the average of the student itself"


def test_a_stock_detector() -> None:
    def student(cfg: Any) -> None:
        two_images(cfg)
        for key in ("teacher", "distill"):
            cfg.model.pop(key)
        cfg.model.type = "ATSS"

    case = bccd.case(student)
    step, memory = examined(case)
    assert {one.level for one in [*step.values(), *memory.values()]} == {"ok"}
    assert "the teacher" not in memory
    (teacher,) = examine(case, ["teacher"])[0].findings
    assert (teacher.level, teacher.found) == ("ok", "none in the config")
