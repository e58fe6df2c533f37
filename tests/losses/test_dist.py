from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.losses.dist import DISTLoss
from mmkd.structures import HeadSpec

from ..conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher
from ..functional.test_relations import pearson
from .contract import (
    Case,
    check_contract,
    check_same_for_twice_the_batch,
    make_case,
    on_two_processes,
    without_objects_in_second,
)

OPTIONS = [
    {"activation": activation, "region": region}
    for activation, region in product(["softmax", "sigmoid"], ["all", "foreground"])
] + [{"beta": 0.0, "temperature": 4.0}, {"gamma": 0.0, "temperature": 4.0}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_contract(options: dict[str, Any]) -> None:
    check_contract(lambda weight: DISTLoss(loss_weight=weight, **options))
    check_same_for_twice_the_batch(DISTLoss(**options))


def test_one_class() -> None:
    case = make_case(num_classes=1)
    check_contract(DISTLoss, case=case)
    assert DISTLoss(gamma=0)(*case) == 0


@pytest.mark.parametrize("region", ["all", "foreground"])
@pytest.mark.parametrize("objects_in_second", [True, False])
def test_does_not_depend_on_the_number_of_processes(region: Any, objects_in_second: bool) -> None:
    student, teacher, context = make_case()
    if not objects_in_second:
        context = without_objects_in_second(context)
    case = student, teacher, context
    torch.testing.assert_close(
        on_two_processes(DISTLoss(region=region), case), DISTLoss(region=region)(*case)
    )


def rows_of(case: Case, keep: Any) -> list[list[tuple[list[float], list[float]]]]:
    """Per image, the scores of student and teacher at its priors."""
    student, teacher, _ = case
    images: list[list[tuple[list[float], list[float]]]] = [[], []]
    row = 0
    for level_s, level_t in zip(student.cls_logits or (), teacher.cls_logits or ()):
        for image in range(2):
            for y in range(level_s.shape[2]):
                for x in range(level_s.shape[3]):
                    for prior in range(2):
                        if keep[row]:
                            part = slice(prior * 3, prior * 3 + 3)
                            s, t = (z[image, part, y, x].sigmoid().tolist() for z in (level_s, level_t))
                            images[image].append((s, t))
                        row += 1
    return images


def by_hand(case: Case, keep: Any, beta: float, gamma: float) -> float:
    images = rows_of(case, keep)
    between = [1 - pearson(s, t) for image in images for s, t in image]
    within = []
    for image in images:
        if len(image) >= 2:
            columns = [1 - pearson([s[c] for s, _ in image], [t[c] for _, t in image]) for c in range(3)]
            within.append(sum(columns) / 3)
    return beta * sum(between) / len(between) + gamma * sum(within) / max(1, len(within))


@pytest.mark.parametrize("region", ["all", "foreground"])
def test_by_hand(region: Any) -> None:
    case = make_case()
    context = case[2]
    assert context.labels_N is not None
    keep = context.valid_N & (context.labels_N < 3) if region == "foreground" else context.valid_N
    value = DISTLoss(loss_weight=2.0, beta=0.7, gamma=3.0, region=region)(*case)
    assert float(value) == pytest.approx(2 * by_hand(case, keep, 0.7, 3.0), rel=1e-6)


def test_an_image_with_one_object_has_no_relation_within_classes() -> None:
    student, teacher, context = make_case()
    context = without_objects_in_second(context)
    labels_N, valid_N = context.labels_N, context.valid_N.clone()
    assert labels_N is not None
    labels_N[50], valid_N[50] = 1, True
    case = student, teacher, replace(context, valid_N=valid_N)
    keep = valid_N & (labels_N < 3)
    assert [len(image) for image in rows_of(case, keep)][1] == 1
    assert float(DISTLoss()(*case)) == pytest.approx(by_hand(case, keep, 1, 1), rel=1e-6)


def test_images_do_not_mix() -> None:
    """The value of a batch is the mean of its images' where they have as many priors."""
    student, teacher, context = make_case()
    context = replace(context, valid_N=torch.ones_like(context.valid_N))
    loss = DISTLoss(region="all")

    def alone(image: int) -> Any:
        def one(level: torch.Tensor) -> torch.Tensor:
            return level[image : image + 1]

        valid_N = torch.ones(len(context.valid_N) // 2, dtype=torch.bool)
        return loss(student.map(one), teacher.map(one), replace(context, valid_N=valid_N, num_images=1))

    torch.testing.assert_close(loss(student, teacher, context), (alone(0) + alone(1)) / 2)


def test_sigmoid_scores_may_be_scaled_and_shifted() -> None:
    _, teacher, context = make_case()
    student = teacher.map(lambda level: (level.sigmoid() * 0.4 + 0.1).logit())
    assert DISTLoss(region="all")(student, teacher, context).abs() < 1e-12


def test_no_object_anywhere_is_zero() -> None:
    student, teacher, context = make_case()
    assert student.cls_logits is not None
    assert context.labels_N is not None
    levels = tuple(level.clone().requires_grad_() for level in student.cls_logits)
    background = replace(context, labels_N=torch.full_like(context.labels_N, 3))
    value = DISTLoss()(replace(student, cls_logits=levels), teacher, background)
    assert value == 0
    value.backward()
    assert all(level.grad is not None and (level.grad == 0).all() for level in levels)


@pytest.mark.parametrize("region", ["all", "foreground"])
def test_constant_student(region: Any) -> None:
    """A head whose weights are zero says the same everywhere."""
    student, teacher, context = make_case(dtype=torch.float32)
    assert student.cls_logits is not None
    levels = tuple(torch.full_like(level, -4.6).requires_grad_() for level in student.cls_logits)
    value = DISTLoss(region=region)(replace(student, cls_logits=levels), teacher, context)
    value.backward()
    assert float(value) == pytest.approx(1, rel=1e-3), "half for each relation"
    for level in levels:
        assert level.grad is not None
        assert torch.isfinite(level.grad).all()


def test_needs_labels_only_for_foreground() -> None:
    assert DISTLoss(region="all").needs == {"cls_logits"}
    assert DISTLoss().needs == {"cls_logits", "labels"}


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (1, {"activation": "softmax"}, "DISTLoss: softmax over one class"),
        (1, {"gamma": 0}, "set gamma > 0"),
        (2, {"gamma": 0, "activation": "softmax"}, "set gamma > 0"),
        (2, {"gamma": 0}, None),
        (2, {"activation": "softmax"}, None),
        (1, {}, None),
    ],
)
def test_few_classes(classes: int, options: dict[str, Any], message: str | None) -> None:
    spec = HeadSpec(classes, classes, True, ((8, 8),), (1,))
    if message is None:
        return DISTLoss(**options).check(spec, spec)
    with pytest.raises(UserError, match=message):
        DISTLoss(**options).check(spec, spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1}, "DISTLoss: beta must be a number ≥ 0, found -1"),
        ({"gamma": "1"}, "gamma must be a number ≥ 0, found '1'"),
        ({"beta": 0, "gamma": 0}, "beta and gamma are both 0"),
        ({"temperature": -4}, "temperature must be a number above 0, found -4"),
        ({"activation": "tanh"}, "activation must be one of softmax, sigmoid, found 'tanh'"),
        ({"region": "main"}, "region must be one of all, foreground, teacher, .*found 'main'"),
        ({"loss_weight": -1}, "loss_weight must be a number ≥ 0, found -1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DISTLoss(**options)


@pytest.mark.parametrize(("region", "boxes"), [("foreground", 3), ("foreground", 0), ("all", 0)])
def test_in_a_detector(region: str, boxes: int) -> None:
    loss = {"type": "DISTLoss", "region": region}
    model = build(distilled(tiny_atss(), tiny_teacher(), None, distill={"x": loss}))
    losses = losses_of(model, batch((96, 128), (80, 100), boxes=boxes))
    losses["loss_kd_x"].backward()
    assert (losses["loss_kd_x"] > 0) == (boxes > 0 or region == "all")
    gradient = model.bbox_head.atss_cls.weight.grad
    assert torch.isfinite(gradient).all()
    assert (gradient.abs().sum() > 0) == (boxes > 0 or region == "all")
