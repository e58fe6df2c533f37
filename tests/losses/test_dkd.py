from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.losses.dkd import DKDLoss
from mmkd.losses.kl import DistillationLoss
from mmkd.structures import HeadSpec

from ..conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher
from .contract import (
    check_contract,
    check_same_for_twice_the_batch,
    make_case,
    on_two_processes,
    without_objects_in_second,
)

OPTIONS = [{}, {"beta": 8.0, "temperature": 4.0}, {"alpha": 0.0}, {"beta": 0.0}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_contract(options: dict[str, float]) -> None:
    check_contract(lambda weight: DKDLoss(loss_weight=weight, **options))
    check_same_for_twice_the_batch(DKDLoss(**options))


def test_by_hand() -> None:
    student, teacher, context = make_case()
    T, values, row = 2.0, [], 0
    assert student.cls_logits is not None
    assert teacher.cls_logits is not None
    assert context.labels_N is not None
    for level_s, level_t in zip(student.cls_logits, teacher.cls_logits):
        for image in range(2):
            for y in range(level_s.shape[2]):
                for x in range(level_s.shape[3]):
                    for prior in range(2):
                        label = int(context.labels_N[row])
                        if context.valid_N[row] and label < 3:
                            e_s, e_t = (
                                [math.exp(float(z[image, prior * 3 + c, y, x]) / T) for c in range(3)]
                                for z in (level_s, level_t)
                            )
                            p_s, p_t = e_s[label] / sum(e_s), e_t[label] / sum(e_t)
                            target = p_t * math.log(p_t / p_s) + (1 - p_t) * math.log((1 - p_t) / (1 - p_s))
                            others = 0.0
                            for c in {0, 1, 2} - {label}:
                                q_s = e_s[c] / (sum(e_s) - e_s[label])
                                q_t = e_t[c] / (sum(e_t) - e_t[label])
                                others += q_t * math.log(q_t / q_s)
                            values.append(T**2 * (1.5 * target + 4 * others))
                        row += 1
    value = DKDLoss(loss_weight=0.5, alpha=1.5, beta=4, temperature=T)(student, teacher, context)
    assert len(values) > 20
    assert float(value) == pytest.approx(0.5 * sum(values) / len(values), rel=1e-6)


@pytest.mark.parametrize("objects_in_second", [True, False])
def test_does_not_depend_on_the_number_of_processes(objects_in_second: bool) -> None:
    student, teacher, context = make_case()
    if not objects_in_second:
        context = without_objects_in_second(context)
    case = student, teacher, context
    torch.testing.assert_close(on_two_processes(DKDLoss(), case), DKDLoss()(*case))


def test_two_classes_are_the_kl_of_their_softmax() -> None:
    case = make_case(num_classes=2)
    kl = DistillationLoss(loss_weight=1.0, activation="softmax", region="foreground")
    torch.testing.assert_close(DKDLoss(beta=7.0)(*case), kl(*case))


def test_a_background_channel_is_one_of_the_others() -> None:
    """A softmax head has a channel more than classes; priors of that label are left out."""
    student, teacher, context = make_case(num_classes=4)
    spec = replace(student.spec, num_classes=3, use_sigmoid=False)
    student, teacher = replace(student, spec=spec), replace(teacher, spec=spec)
    assert context.labels_N is not None
    context = replace(context, labels_N=context.labels_N.clamp(max=3))
    value = DKDLoss(beta=0.0)(student, teacher, context)
    keep = context.valid_N & (context.labels_N < 3)
    p_s, p_t = (
        x.flat_cls_logits()[keep].softmax(1).gather(1, context.labels_N[keep, None])
        for x in (student, teacher)
    )
    expected = (p_t * (p_t / p_s).log() + (1 - p_t) * ((1 - p_t) / (1 - p_s)).log()).mean()
    torch.testing.assert_close(value, expected)


def test_no_object_anywhere_is_zero() -> None:
    student, teacher, context = make_case()
    assert student.cls_logits is not None
    assert context.labels_N is not None
    levels = tuple(level.clone().requires_grad_() for level in student.cls_logits)
    background = replace(context, labels_N=torch.full_like(context.labels_N, 3))
    value = DKDLoss()(replace(student, cls_logits=levels), teacher, background)
    assert value == 0
    value.backward()
    assert all(level.grad is not None and (level.grad == 0).all() for level in levels)


def test_does_not_depend_on_the_logits_common_shift() -> None:
    student, teacher, context = make_case()
    moved = student.map(lambda level: level + 5)
    torch.testing.assert_close(DKDLoss()(moved, teacher, context), DKDLoss()(student, teacher, context))


def test_classes_that_tell_nothing_are_refused() -> None:
    def spec(classes: int) -> HeadSpec:
        return HeadSpec(classes, classes, True, ((8, 8),), (1,))

    with pytest.raises(UserError, match=r"DKDLoss: .*activation='sigmoid'"):
        DKDLoss().check(spec(1), spec(1))
    with pytest.raises(UserError, match="alpha is 0"):
        DKDLoss(alpha=0).check(spec(2), spec(2))
    DKDLoss().check(spec(2), spec(2))
    DKDLoss(alpha=0).check(spec(3), spec(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1}, "DKDLoss: alpha must be a number ≥ 0, found -1"),
        ({"beta": "8"}, "beta must be a number ≥ 0, found '8'"),
        ({"alpha": 0, "beta": 0}, "alpha and beta are both 0"),
        ({"temperature": 0}, "temperature must be a number above 0, found 0"),
        ({"loss_weight": None}, "loss_weight must be a number ≥ 0, found None"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DKDLoss(**options)


@pytest.mark.parametrize("boxes", [3, 0])
def test_in_a_detector(boxes: int) -> None:
    model = build(distilled(tiny_atss(), tiny_teacher(), None, distill={"x": {"type": "DKDLoss"}}))
    losses = losses_of(model, batch((96, 128), (80, 100), boxes=boxes))
    losses["loss_kd_x"].backward()
    assert (losses["loss_kd_x"] > 0) == (boxes > 0)
    assert (model.bbox_head.atss_cls.weight.grad.abs().sum() > 0) == (boxes > 0)
