from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.losses.cosine import CosineLoss

from ..conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher
from .contract import Case, check_contract, check_same_for_twice_the_batch, make_case


def value_of(case: Case, **options: Any) -> torch.Tensor:
    loss = CosineLoss(**options)
    loss.check(case[0].spec, case[1].spec)
    loss.adapt(case[0].spec, case[1].spec)
    return loss.double()(*case)


@pytest.mark.parametrize("vector", ["map", "mean"])
@pytest.mark.parametrize("align", ["pool", "conv"])
def test_contract(vector: Any, align: str) -> None:
    def loss(weight: float) -> CosineLoss:
        return CosineLoss(weight, align=align, vector=vector)

    check_contract(loss, part="feats", per_prior=False, identity=align == "pool")
    check_same_for_twice_the_batch(loss(1.0))


@pytest.mark.parametrize("vector", ["map", "mean"])
def test_value_by_hand_with_a_teacher_twice_as_wide(vector: Any) -> None:
    student, teacher, _ = case = make_case(sizes=((2, 3), (1, 2)), channels=(2, 4))
    per_level = []
    for own, taught in zip(student.feats, teacher.feats):
        B, _, H, W = own.shape
        for b in range(B):
            s, t = [], []
            for c in range(2):
                places = [(y, x) for y in range(H) for x in range(W)]
                s_c = [own[b, c, y, x].item() for y, x in places]
                t_c = [
                    (taught[b, 2 * c, y, x].item() + taught[b, 2 * c + 1, y, x].item()) / 2 for y, x in places
                ]
                s += s_c if vector == "map" else [sum(s_c) / len(places)]
                t += t_c if vector == "map" else [sum(t_c) / len(places)]
            dot = sum(a * b for a, b in zip(s, t))
            norms = math.sqrt(sum(a * a for a in s)) * math.sqrt(sum(b * b for b in t))
            per_level.append(1 - dot / norms)
    expected = 0.7 * sum(per_level) / len(per_level)
    torch.testing.assert_close(
        value_of(case, loss_weight=0.7, vector=vector),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-9,
        atol=0,
    )


def test_the_size_of_features_does_not_matter() -> None:
    student, teacher, context = case = make_case()
    value = value_of(case)
    torch.testing.assert_close(value_of((student.map(lambda x: x * 50), teacher, context)), value)
    torch.testing.assert_close(value_of((student, teacher.map(lambda x: x / 50), context)), value)
    opposite = teacher.map(lambda x: -x)
    torch.testing.assert_close(value_of((opposite, teacher, context)).item(), 2.0)


def test_mean_does_not_see_where_features_are() -> None:
    student, teacher, context = make_case()
    moved = student.map(lambda level: level.flip(2, 3))
    for vector, same in (("mean", True), ("map", False)):
        values = [value_of((outputs, teacher, context), vector=vector) for outputs in (student, moved)]
        assert torch.isclose(*values) == same


def test_each_image_counts_alike() -> None:
    """An image with large features does not drown the others."""
    student, teacher, context = case = make_case()
    factor = torch.tensor([1.0, 100.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    louder = [outputs.map(lambda level: level * factor) for outputs in (student, teacher)]
    torch.testing.assert_close(value_of((*louder, context)), value_of(case))


def test_levels_are_averaged() -> None:
    case = make_case()
    each = [value_of(case, levels=[level]) for level in (0, 1)]
    torch.testing.assert_close(value_of(case), sum(each) / 2)


def test_pooling_has_no_parameters_and_a_convolution_does() -> None:
    student, teacher, _ = make_case(channels=(4, 6))
    for align, count in (("pool", 0), ("auto", 4)):
        loss = CosineLoss(align=align)
        loss.check(student.spec, teacher.spec)
        loss.adapt(student.spec, teacher.spec)
        assert len(list(loss.parameters())) == count
    with pytest.raises(UserError, match="CosineLoss: align='none' needs features of equal width"):
        CosineLoss(align="none").check(student.spec, teacher.spec)


@pytest.mark.parametrize("width", [32, 96])
@pytest.mark.parametrize("align", ["pool", "auto"])
def test_trains_a_student(width: int, align: str) -> None:
    teacher = tiny_teacher(neck__out_channels=width, bbox_head__in_channels=width)
    loss = {"type": "CosineLoss", "align": align}
    model = build(distilled(tiny_atss(), teacher, None, distill={"cos": loss}))
    losses = losses_of(model, batch((96, 128), (80, 100)))
    assert 0 < losses["loss_kd_cos"] <= 2
    losses["loss_kd_cos"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.neck.parameters() if p.dim() > 1)
    assert all(p.grad is None for p in model.bbox_head.parameters()), "features end at the neck"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vector": "flat"}, "CosineLoss: vector must be one of map, mean, found 'flat'"),
        ({"align": "bilinear"}, "CosineLoss: align must be one of pool, auto, conv, none, found 'bilinear'"),
        ({"levels": [-2]}, "CosineLoss: levels must be distinct indices"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CosineLoss(**options)
