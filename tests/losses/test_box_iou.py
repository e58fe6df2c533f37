from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.losses.box_iou import BoxIoULoss

from ..conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher
from ..functional.test_boxes import by_hand
from .contract import check_contract, check_same_for_twice_the_batch, make_case

OPTIONS = [
    {"region": region, "overlap": overlap, "min_score": score}
    for region, overlap, score in product(
        ["teacher", "foreground", "teacher_foreground"], ["giou", "diou"], [0.0, 0.6]
    )
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_contract(options: dict[str, Any]) -> None:
    few = make_case(sizes=((2, 3), (1, 2)))  # gradients are checked number by number
    check_contract(lambda weight: BoxIoULoss(loss_weight=weight, **options), "boxes", case=few)
    check_same_for_twice_the_batch(BoxIoULoss(**options))


@pytest.mark.parametrize("region", ["teacher", "foreground", "teacher_foreground"])
@pytest.mark.parametrize("min_score", [0.0, 0.7])
def test_value_by_hand(region: Any, min_score: float) -> None:
    student, teacher, context = make_case()
    assert context.labels_N is not None
    total, weights = 0.0, 0.0
    for own, taught, logits, valid, label in zip(
        student.flat_boxes().tolist(),
        teacher.flat_boxes().tolist(),
        teacher.flat_cls_logits(),
        context.valid_N,
        context.labels_N,
    ):
        weight = float((1 / (1 + (-logits).exp())).max()) if region != "foreground" else 1.0
        if valid and (region == "teacher" or label < 3) and weight >= min_score:
            total += weight * by_hand(own, taught, "giou")
            weights += weight
    value = BoxIoULoss(region=region, min_score=min_score, loss_weight=1.5)(student, teacher, context)
    torch.testing.assert_close(float(value), 1.5 * total / weights, rtol=1e-5, atol=0)


def test_classes_that_no_one_sees_add_nothing() -> None:
    student, teacher, context = make_case(num_classes=2, priors=1)
    assert teacher.cls_logits is not None
    more = tuple(
        torch.cat([level, level.new_full((2, 78, *level.shape[2:]), -20)], 1) for level in teacher.cls_logits
    )
    spec = replace(teacher.spec, num_classes=80, cls_channels=80)
    wide = replace(teacher, cls_logits=more, spec=spec)
    torch.testing.assert_close(BoxIoULoss()(student, wide, context), BoxIoULoss()(student, teacher, context))


def test_the_image_size_does_not_count() -> None:
    student, teacher, context = make_case()
    value = BoxIoULoss()(student, teacher, context)
    for outputs in (student, teacher):
        assert outputs.boxes is not None
    larger = [
        replace(outputs, boxes=tuple(level * 3 for level in outputs.boxes or ()))
        for outputs in (student, teacher)
    ]
    torch.testing.assert_close(BoxIoULoss()(larger[0], larger[1], context), value)


def test_no_object_anywhere_is_zero() -> None:
    student, teacher, context = make_case()
    background = replace(context, labels_N=torch.full_like(context.valid_N, 3, dtype=torch.long))
    boxes = tuple(level.requires_grad_() for level in student.boxes or ())
    for region in ("foreground", "teacher_foreground"):
        value = BoxIoULoss(region=region)(replace(student, boxes=boxes), teacher, background)  # type: ignore[arg-type]
        assert value == 0
        assert value.requires_grad


def test_one_class() -> None:
    check_contract(lambda weight: BoxIoULoss(weight), "boxes", case=make_case(1, ((2, 3), (1, 2))))


def test_needs() -> None:
    assert BoxIoULoss().needs == {"boxes", "cls_logits"}
    assert BoxIoULoss(region="foreground").needs == {"boxes", "labels"}
    assert BoxIoULoss(region="teacher_foreground").needs == {"boxes", "labels", "cls_logits"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "main"}, "region must be one of all, foreground, teacher, .*found 'main'"),
        ({"overlap": "ciou"}, "overlap must be one of giou, iou, diou, log_iou, found 'ciou'"),
        ({"min_score": 1}, r"min_score must be a number in \[0, 1\), found 1"),
        ({"min_score": "0.1"}, "found '0.1'"),
        ({"loss_weight": -1}, "loss_weight must be a number ≥ 0, found -1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(
        UserError, match=f"BoxIoULoss: {message}" if "found '" not in message[:7] else message
    ):
        BoxIoULoss(**options)


def test_in_a_detector() -> None:
    terms = {
        region: {"type": "BoxIoULoss", "region": region}
        for region in ("teacher", "foreground", "teacher_foreground")
    }
    model = build(distilled(tiny_atss(), tiny_teacher(), None, distill=terms))
    losses = losses_of(model, batch())
    assert all(0 < losses[f"loss_kd_{region}"] < 4 for region in terms)
    sum(losses[f"loss_kd_{region}"] for region in terms).backward()
    assert model.bbox_head.atss_reg.weight.grad.abs().sum() > 0
    assert model.bbox_head.atss_cls.weight.grad is None
    assert all(parameter.grad is None for parameter in model.teacher.model.parameters())
    empty = losses_of(model, batch((64, 64), boxes=0))
    assert empty["loss_kd_foreground"] == 0
    assert empty["loss_kd_teacher"] > 0
