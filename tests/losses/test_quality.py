from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mmkd.errors import UserError
from mmkd.losses.quality import QualityLoss

from ..conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher
from .contract import check_contract, check_same_for_twice_the_batch, make_case, with_part

REGIONS = ["foreground", "teacher", "all"]


@pytest.mark.parametrize("region", REGIONS)
def test_contract(region: Any) -> None:
    check_contract(lambda weight: QualityLoss(loss_weight=weight, region=region), "centerness")
    check_same_for_twice_the_batch(QualityLoss(region=region))


@pytest.mark.parametrize("region", REGIONS)
def test_value_by_hand(region: Any) -> None:
    student, teacher, context = make_case()
    assert context.labels_N is not None
    total, weights = 0.0, 0.0
    for s, t, logits, valid, label in zip(
        student.flat_extra("centerness").tolist(),
        teacher.flat_extra("centerness").tolist(),
        teacher.flat_cls_logits(),
        context.valid_N,
        context.labels_N,
    ):
        weight = float((1 / (1 + (-logits).exp())).max()) if region == "teacher" else 1.0
        if not valid or (region == "foreground" and label == 3):
            continue
        q_s, q_t = 1 / (1 + math.exp(-s)), 1 / (1 + math.exp(-t))
        cross_entropy = -q_t * math.log(q_s) - (1 - q_t) * math.log(1 - q_s)
        entropy = -q_t * math.log(q_t) - (1 - q_t) * math.log(1 - q_t)
        total += weight * (cross_entropy - entropy)
        weights += weight
    value = QualityLoss(region=region, loss_weight=1.5)(student, teacher, context)
    torch.testing.assert_close(float(value), 1.5 * total / weights, rtol=1e-5, atol=0)


def test_gradient_is_that_of_the_cross_entropy() -> None:
    student, teacher, context = make_case()
    levels = tuple(level.requires_grad_() for level in student.extra["centerness"])
    own = with_part(student, "centerness", levels)
    ours = torch.autograd.grad(QualityLoss(region="all")(own, teacher, context), levels)
    keep = context.valid_N
    target = teacher.flat_extra("centerness").sigmoid()
    plain = F.binary_cross_entropy_with_logits(own.flat_extra("centerness")[keep], target[keep])
    for a, b in zip(ours, torch.autograd.grad(plain, levels)):
        torch.testing.assert_close(a, b)


def test_no_object_anywhere_is_zero() -> None:
    student, teacher, context = make_case()
    levels = tuple(level.requires_grad_() for level in student.extra["centerness"])
    background = replace(context, labels_N=torch.full_like(context.valid_N, 3, dtype=torch.long))
    value = QualityLoss()(with_part(student, "centerness", levels), teacher, background)
    assert value == 0
    assert value.requires_grad


@pytest.mark.parametrize("region", REGIONS)
def test_the_number_of_classes_does_not_count(region: Any) -> None:
    """Classes that the teacher sees nowhere change nothing; one class is enough."""
    student, teacher, context = make_case(num_classes=1, priors=1)
    assert teacher.cls_logits is not None
    spec = replace(teacher.spec, num_classes=41, cls_channels=41)
    more = tuple(
        torch.cat([level, level.new_full((2, 40, *level.shape[2:]), -20)], 1) for level in teacher.cls_logits
    )
    wide = replace(teacher, cls_logits=more, spec=spec)
    loss = QualityLoss(region=region)
    assert loss(student, teacher, context) > 0
    torch.testing.assert_close(loss(student, wide, context), loss(student, teacher, context))


def test_several_outputs_need_a_name() -> None:
    student, teacher, context = make_case()
    more = [
        replace(
            outputs, extra={**outputs.extra, "iou": tuple(-level for level in outputs.extra["centerness"])}
        )
        for outputs in (student, teacher)
    ]
    with pytest.raises(UserError, match=r"several further outputs[\s\S]*one of: centerness, iou"):
        QualityLoss()(more[0], more[1], context)
    torch.testing.assert_close(
        QualityLoss(name="centerness")(more[0], more[1], context), QualityLoss()(student, teacher, context)
    )
    only_common = QualityLoss()(more[0], teacher, context)
    torch.testing.assert_close(only_common, QualityLoss()(student, teacher, context))
    with pytest.raises(
        UserError, match=r"no.* output 'iou'[\s\S]*student's: centerness, iou; the teacher's: cent"
    ):
        QualityLoss(name="iou")(more[0], teacher, context)


def test_heads_without_such_an_output() -> None:
    student, teacher, context = make_case()
    bare = replace(teacher, extra={})
    with pytest.raises(
        UserError, match=r"no common further output[\s\S]*student's: centerness; the teacher's: none"
    ):
        QualityLoss()(student, bare, context)


def test_needs() -> None:
    assert QualityLoss().needs == {"extra", "labels"}
    assert QualityLoss(region="teacher").needs == {"extra", "cls_logits"}
    assert QualityLoss(region="all").needs == {"extra"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "fg"}, "region must be one of all, foreground, .*found 'fg'"),
        ({"name": 3}, "name must be a string or None, found 3"),
        ({"loss_weight": -1}, "loss_weight must be a number ≥ 0, found -1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"QualityLoss: {message}"):
        QualityLoss(**options)


def test_in_a_detector() -> None:
    terms = {region: {"type": "QualityLoss", "region": region} for region in REGIONS}
    model = build(distilled(tiny_atss(), tiny_teacher(), None, distill=terms))
    losses = losses_of(model, batch())
    assert all(losses[f"loss_kd_{region}"] > 0 for region in REGIONS)
    sum(losses[f"loss_kd_{region}"] for region in REGIONS).backward()
    assert model.bbox_head.atss_centerness.weight.grad.abs().sum() > 0
    assert model.bbox_head.atss_cls.weight.grad is None
    assert all(parameter.grad is None for parameter in model.teacher.model.parameters())
    assert losses_of(model, batch((64, 64), boxes=0))["loss_kd_foreground"] == 0
