from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.losses.bckd import BCKDLoss
from mmkd.structures import HeadSpec

from ..conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher
from .contract import (
    check_contract,
    check_same_for_twice_the_batch,
    make_case,
    on_two_processes,
    without_objects_in_second,
)


@pytest.mark.parametrize("beta", [1, 2.0])
def test_contract(beta: float) -> None:
    check_contract(lambda weight: BCKDLoss(loss_weight=weight, beta=beta))
    check_same_for_twice_the_batch(BCKDLoss(beta=beta))


def test_no_image_is_zero() -> None:
    assert BCKDLoss()(*make_case(images=0)) == 0


def test_one_class() -> None:
    check_contract(BCKDLoss, case=make_case(num_classes=1))


def by_hand(case: Any) -> float:
    student, teacher, context = case
    total, objects, row = 0.0, [0, 0], 0
    for level_s, level_t in zip(student.cls_logits, teacher.cls_logits):
        for image in range(2):
            for y in range(level_s.shape[2]):
                for x in range(level_s.shape[3]):
                    for prior in range(2):
                        objects[image] += int(context.labels_N[row] < 3)
                        for c in range(3) if context.valid_N[row] else ():
                            z_s, z_t = (float(z[image, prior * 3 + c, y, x]) for z in (level_s, level_t))
                            s, t = 1 / (1 + math.exp(-z_s)), 1 / (1 + math.exp(-z_t))
                            total += abs(t - s) * -(t * math.log(s) + (1 - t) * math.log(1 - s))
                        row += 1
    return total / sum(max(1, count) for count in objects)


def test_by_hand() -> None:
    case = make_case()
    assert float(BCKDLoss()(*case)) == pytest.approx(by_hand(case), rel=1e-6)


def test_an_image_without_objects_counts_as_one() -> None:
    """As in the student's own loss: the divisor is never that of the other images alone."""
    student, teacher, context = make_case()
    context = without_objects_in_second(context)
    assert context.labels_N is not None
    case = student, teacher, context
    first = int((context.labels_N < 3).sum())
    assert first > 1
    assert float(BCKDLoss()(*case)) == pytest.approx(by_hand(case), rel=1e-6)
    none = replace(context, labels_N=torch.full_like(context.labels_N, 3))
    torch.testing.assert_close(BCKDLoss()(student, teacher, none), BCKDLoss()(*case) * (first + 1) / 2)


@pytest.mark.parametrize("objects_in_second", [True, False])
def test_does_not_depend_on_the_number_of_processes(objects_in_second: bool) -> None:
    student, teacher, context = make_case()
    if not objects_in_second:
        context = without_objects_in_second(context)
    case = student, teacher, context
    torch.testing.assert_close(on_two_processes(BCKDLoss(), case), BCKDLoss()(*case))


def test_classes_that_agree_add_nothing() -> None:
    student, teacher, context = make_case(priors=1)
    spec = replace(student.spec, num_classes=8, cls_channels=8)

    def widened(outputs: Any) -> Any:
        levels = tuple(
            torch.cat([level, torch.full_like(level, -1)[:, :1].expand(-1, 5, -1, -1)], 1)
            for level in outputs.cls_logits
        )
        return replace(outputs, spec=spec, cls_logits=levels)

    labels_N = torch.where(context.labels_N == 3, 8, context.labels_N)
    torch.testing.assert_close(
        BCKDLoss()(widened(student), widened(teacher), replace(context, labels_N=labels_N)),
        BCKDLoss()(student, teacher, context),
    )


@pytest.mark.parametrize("whose", [0, 1])
def test_softmax_heads_are_refused(whose: int) -> None:
    sigmoid = HeadSpec(3, 3, True, ((8, 8),), (1,))
    specs = [sigmoid, sigmoid]
    BCKDLoss().check(*specs)
    specs[whose] = replace(sigmoid, cls_channels=4, use_sigmoid=False)
    with pytest.raises(UserError, match="BCKDLoss: the (student|teacher)'s class scores are a softmax"):
        BCKDLoss().check(*specs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.5}, "BCKDLoss: beta must be a number ≥ 1, found 0.5"),
        ({"beta": "1"}, "found '1'"),
        ({"loss_weight": -1}, "BCKDLoss: loss_weight must be a number ≥ 0, found -1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BCKDLoss(**options)


@pytest.mark.parametrize("boxes", [3, 0])
def test_in_a_detector(boxes: int) -> None:
    model = build(distilled(tiny_atss(), tiny_teacher(), None, distill={"x": {"type": "BCKDLoss"}}))
    losses = losses_of(model, batch((96, 128), (80, 100), boxes=boxes))
    assert losses["loss_kd_x"] > 0
    losses["loss_kd_x"].backward()
    assert model.bbox_head.atss_cls.weight.grad.abs().sum() > 0
    assert torch.isfinite(model.bbox_head.atss_cls.weight.grad).all()
