from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.losses import DistillationLoss, kl_divergence
from mmkd.structures import HeadSpec

from .contract import check_contract, check_same_for_twice_the_batch, make_case


def unweighted(**options: Any) -> DistillationLoss:
    return DistillationLoss(**{"loss_weight": 1.0, "region": "all", **options})


OPTIONS = [
    {"activation": activation, "region": region, "normalizer": normalizer}
    for activation, region, normalizer in product(
        ["softmax", "sigmoid"], ["all", "foreground", "teacher"], ["region", "priors", "batch"]
    )
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
def test_contract(options: dict[str, Any]) -> None:
    check_contract(lambda weight: unweighted(temperature=2.0, loss_weight=weight, **options))
    check_same_for_twice_the_batch(unweighted(temperature=2.0, **options))


@pytest.mark.parametrize("options", OPTIONS[::4], ids=lambda o: "-".join(o.values()))
def test_contract_standardized(options: dict[str, Any]) -> None:
    check_contract(lambda weight: unweighted(standardize=True, loss_weight=weight, **options))
    check_same_for_twice_the_batch(unweighted(standardize=True, **options))


def test_standardized_sees_no_scale_of_either() -> None:
    student, teacher, context = make_case()
    loss = unweighted(activation="softmax", temperature=2.0, standardize=True)
    value = loss(student, teacher, context)
    scaled = loss(student.map(lambda x: 3 * x), teacher.map(lambda x: x / 2 + 1), context)
    torch.testing.assert_close(scaled, value)
    plain = unweighted(activation="softmax", temperature=2.0)(student, teacher, context)
    assert abs(plain - value) > 0.01


@pytest.mark.parametrize("classes", [1, 2])
def test_standardized_is_refused_for_fewer_than_three_classes(classes: int) -> None:
    def spec(classes: int) -> HeadSpec:
        return HeadSpec(classes, classes, True, ((8, 8),), (1,))

    loss = unweighted(activation="sigmoid", standardize=True)
    with pytest.raises(UserError, match="DistillationLoss: z-scores .* standardize=False"):
        loss.check(spec(classes), spec(classes))
    loss.check(spec(3), spec(3))


def test_all_region_is_the_mean_over_valid_priors() -> None:
    student, teacher, context = make_case()
    value = unweighted(activation="sigmoid", region="all")(student, teacher, context)
    keep = context.valid_N
    expected = kl_divergence(
        student.flat_cls_logits()[keep], teacher.flat_cls_logits()[keep], activation="sigmoid"
    )
    torch.testing.assert_close(value, expected)


def test_foreground_is_the_mean_over_assigned_priors() -> None:
    student, teacher, context = make_case()
    value = unweighted(region="foreground")(student, teacher, context)
    assert context.labels_N is not None
    keep = context.valid_N & (context.labels_N < 3)
    expected = kl_divergence(
        student.flat_cls_logits()[keep], teacher.flat_cls_logits()[keep], activation="sigmoid"
    )
    torch.testing.assert_close(value, expected)


def test_teacher_region_weighs_by_its_top_score() -> None:
    student, teacher, context = make_case()
    value = unweighted(region="teacher", normalizer="batch")(student, teacher, context)
    score = teacher.flat_cls_logits().sigmoid().max(1).values * context.valid_N
    each = kl_divergence(
        student.flat_cls_logits(), teacher.flat_cls_logits(), activation="sigmoid", reduction="none"
    )
    torch.testing.assert_close(value, (each * score).sum() / 2, rtol=1e-5, atol=1e-6)


def test_no_object_anywhere_is_zero() -> None:
    student, teacher, context = make_case()
    background = replace(context, labels_N=torch.full_like(context.labels_N, 3))
    for normalizer in ("region", "priors", "batch"):
        assert unweighted(region="foreground", normalizer=normalizer)(student, teacher, background) == 0


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_reductions(activation: Any) -> None:
    case = make_case()
    per_prior = unweighted(activation=activation)(*case)
    torch.testing.assert_close(unweighted(activation=activation, reduction="mean")(*case), per_prior / 3)
    n = case[2].valid_N.sum()
    torch.testing.assert_close(unweighted(activation=activation, reduction="sum")(*case), per_prior * n)


def test_classes_that_agree_add_nothing() -> None:
    """The value does not shrink with the number of classes (sum, not mean)."""
    student, teacher, context = make_case(num_classes=3, priors=1)
    assert student.cls_logits is not None
    assert teacher.cls_logits is not None
    spec = replace(student.spec, num_classes=8, cls_channels=8)
    same = [
        torch.zeros(*level.shape[:1], 5, *level.shape[2:], dtype=level.dtype) for level in student.cls_logits
    ]

    def widened(outputs: Any) -> Any:
        return replace(
            outputs,
            spec=spec,
            cls_logits=tuple(torch.cat([a, b], 1) for a, b in zip(outputs.cls_logits, same)),
        )

    loss = unweighted(activation="sigmoid", region="all")
    torch.testing.assert_close(
        loss(widened(student), widened(teacher), context), loss(student, teacher, context)
    )


def test_needs_labels_only_for_foreground() -> None:
    assert DistillationLoss(region="all").needs == {"cls_logits"}
    assert unweighted(region="foreground").needs == {"cls_logits", "labels"}


def test_one_class_softmax_is_refused_at_build_time() -> None:
    spec = HeadSpec(1, 1, True, ((8, 8),), (1,))
    with pytest.raises(UserError, match="activation='sigmoid'"):
        unweighted(activation="softmax").check(spec, spec)
    unweighted(activation="sigmoid").check(spec, spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -4.0}, "DistillationLoss: temperature must be a number above 0, found -4.0"),
        ({"loss_weight": -1}, "loss_weight must be a number ≥ 0, found -1"),
        ({"loss_weight": "1"}, "found '1'"),
        ({"region": "fg"}, "region must be one of all, foreground, teacher, .*found 'fg'"),
        ({"normalizer": "n"}, "normalizer must be one of region, priors, batch"),
        ({"activation": "tanh"}, "activation must be one of"),
        ({"standardize": "yes"}, "standardize must be True or False, found 'yes'"),
        ({"reduction": "none"}, "reduction must be one of sum, batchmean, mean"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        unweighted(**options)
