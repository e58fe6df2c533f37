from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.errors import UserError

from ..conftest import build
from ..detectors.test_kd_detector import distilled
from .queries import (
    FAMILIES,
    LAYERS,
    OF_MASKS,
    OF_STAGES,
    QUERIES,
    SOFTMAX,
    batch,
    losses_of,
    opinionated,
    tiny,
    twins,
    unsettle,
)

SHARING = [family for family in FAMILIES if family not in (*OF_STAGES, *OF_MASKS, "DDQDETR")]


def kd_detr(family: str, place: str = "shared_queries") -> dict[str, dict[str, Any]]:
    activation = "softmax" if family in SOFTMAX else "sigmoid"
    return {
        "cls": {"type": "DistillationLoss", "activation": activation, "region": "teacher", "place": place},
        "box": {"type": "BoxL1Loss", "place": place},
        "iou": {"type": "BoxIoULoss", "place": place},
    }


@pytest.mark.parametrize("family", SHARING)
def test_a_student_that_is_its_teacher_answers_the_same(tmp_path: Path, family: str) -> None:
    model = twins(tiny(family), tmp_path, **kd_detr(family, f"shared_queries.{LAYERS - 1}"))
    found = losses_of(model)
    assert all(value < 1e-5 for value in found.values())
    if hasattr(model, "query_embedding"):  # its own queries are not asked
        torch.nn.init.normal_(model.query_embedding.weight)
    asked_others = losses_of(model)
    assert all(value < 1e-5 for value in asked_others.values())
    unsettle(model)
    moved = losses_of(model)
    assert all(moved[name] > 10 * value for name, value in found.items())
    sum(moved.values()).backward()
    for part in (model.decoder, model.encoder, model.bbox_head, model.backbone.layer4):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert all(p.grad is None for p in model.teacher.model.parameters())


def test_each_query_of_the_teacher_is_a_row_in_each_layer(tmp_path: Path) -> None:
    teacher = tiny("DINO", queries=QUERIES + 4)
    checkpoint = opinionated(tmp_path / "teacher.pth", teacher)
    cfg = distilled(tiny("DINO", layers=3), checkpoint, distill=kd_detr("DINO"))
    cfg.teacher.config.model = teacher
    model = build(cfg).train()
    seen = []
    model.distill.box.register_forward_pre_hook(lambda _, args: seen.append(args))
    found = losses_of(model)
    assert all(value > 0 for value in found.values())
    ((own, taught, context),) = seen
    assert len(own.flat_boxes()) == len(taught.flat_boxes()) == 3 * 2 * (QUERIES + 4)
    taught_LBQ4 = taught.flat_boxes().unflatten(0, (3, 2, -1))
    assert torch.equal(taught_LBQ4[0], taught_LBQ4[2])
    assert torch.equal(own.image_N, taught.image_N)
    assert context.valid_N.all()


@pytest.mark.parametrize("family", ["DABDETR", "DINO"])
def test_the_students_own_step_is_not_touched(tmp_path: Path, family: str) -> None:
    cfg = tiny(family)
    data, after, own = batch(), [], []
    for weight in (0, 1):
        losses = {name: {**loss, "loss_weight": weight} for name, loss in kd_detr(family).items()}
        model = build(distilled(cfg, None, distill=losses)).train()
        torch.manual_seed(1)
        inputs = model.data_preprocessor(copy.deepcopy(data), True)
        found = model.loss(inputs["inputs"], inputs["data_samples"])
        own.append({name: value for name, value in found.items() if "kd" not in name})
        after.append(torch.rand(1))
    assert all(torch.equal(own[0][name], value) for name, value in own[1].items())
    assert after[0] == after[1], "it draws no numbers, as it has no denoising queries"


def test_the_encoders_run_once(tmp_path: Path) -> None:
    losses = {
        **kd_detr("DINO"),
        "matched": {"type": "BoxIoULoss", "place": "queries"},
        "f": {"type": "PKDLoss"},
    }
    model = twins(tiny("DINO"), tmp_path, **losses)
    losses_of(model)  # in the first step the teacher makes sure of its accelerations
    calls: dict[str, int] = {}

    def count(name: str) -> Any:
        def add(*_: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return add

    for who, detector in (("student", model), ("teacher", model.teacher.model)):
        for part in ("encoder", "decoder"):
            getattr(detector, part).register_forward_hook(count(f"{who}'s {part}"))
    losses_of(model)
    # Its own queries and the teacher's.
    expected = {
        "student's encoder": 1,
        "student's decoder": 2,
        "teacher's encoder": 1,
        "teacher's decoder": 1,
    }
    assert calls == expected


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ("DDQDETR", "DDQDETR", "its decoder selects queries"),
        ("SparseRCNN", "SparseRCNN", "it is not a detection transformer"),
        ("DINO", "DDQDETR", "its decoder selects queries"),
        ("DeformableDETR", "DINO", r"cannot read the teacher's queries(.|\n)*Deformable\w+ of width 256"),
        ("ConditionalDETR", "DABDETR", r"positions of 4 coordinates \(the teacher's\)"),
    ],
)
def test_what_cannot_share_queries(student: str, teacher: str, message: str) -> None:
    cfg = distilled(tiny(student), None, distill=kd_detr(student))
    cfg.teacher.config.model = tiny(teacher)
    with pytest.raises(UserError, match=message):
        build(cfg)


def test_they_have_no_assigned_classes() -> None:
    loss = {"type": "DistillationLoss", "place": "shared_queries"}
    with pytest.raises(UserError, match=r"place='shared_queries' of the student(.|\n)*needs labels"):
        build(distilled(tiny("DABDETR"), None, distill={"cls": loss}))
