from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.losses.fitnets import FitNetsLoss
from mmkd.structures import DenseOutputs

from ..conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher
from .contract import check_contract, check_same_for_twice_the_batch, make_case


@pytest.mark.parametrize("align", ["conv", "none"])
@pytest.mark.parametrize("levels", [None, [1]])
def test_contract(align: str, levels: list[int] | None) -> None:
    def loss(weight: float) -> FitNetsLoss:
        return FitNetsLoss(weight, levels, align)

    check_contract(loss, part="feats", per_prior=False, identity=align == "none")
    check_same_for_twice_the_batch(loss(1.0))


def test_published_value_by_hand() -> None:
    student, teacher, context = make_case(sizes=((2, 3), (1, 2)), channels=(2, 3))
    loss = FitNetsLoss(loss_weight=0.5)
    loss.adapt(student.spec, teacher.spec)
    loss.double()
    per_level = []
    for own, taught, regressor in zip(student.feats, teacher.feats, loss.aligns):
        weight, bias = regressor.weight[:, :, 0, 0].tolist(), regressor.bias.tolist()
        squares = []
        for b, o, y, x in product(*map(range, taught.shape)):
            regressed = bias[o] + sum(weight[o][i] * own[b, i, y, x].item() for i in range(2))
            squares.append((regressed - taught[b, o, y, x].item()) ** 2)
        per_level.append(sum(squares) / len(squares))
    expected = 0.5 * sum(per_level) / 2
    torch.testing.assert_close(
        loss(student, teacher, context), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_the_size_of_the_map_and_the_number_of_levels_do_not_matter() -> None:
    student, teacher, context = case = make_case(sizes=((4, 5),))
    loss = FitNetsLoss(align="none")
    loss.adapt(student.spec, teacher.spec)
    value = loss(*case)
    tiled = [outputs.map(lambda level: level.tile(1, 1, 2, 3)) for outputs in (student, teacher)]
    torch.testing.assert_close(loss(*tiled, context), value)
    student, teacher, context = case = make_case()
    both, first, second = (FitNetsLoss(levels=levels, align="none") for levels in (None, [0], [1]))
    for each in (both, first, second):
        each.adapt(student.spec, teacher.spec)
    torch.testing.assert_close(both(*case), (first(*case) + second(*case)) / 2)


def test_a_regressor_can_undo_a_linear_change_of_the_teacher() -> None:
    """What it is for: features that say the same in other channels cost nothing."""
    student, _, context = make_case()
    mix = torch.randn(6, 4, dtype=torch.float64)
    mixed = tuple(torch.einsum("oc,bchw->bohw", mix, level) for level in student.feats)
    teacher = DenseOutputs(replace(student.spec, in_channels=(6, 6)), feats=mixed)
    loss = FitNetsLoss()
    loss.adapt(student.spec, teacher.spec)
    loss.double()
    assert loss(student, teacher, context) > 0.1
    for regressor in loss.aligns:
        regressor.weight.data, regressor.bias.data = mix[:, :, None, None], torch.zeros_like(regressor.bias)
    assert loss(student, teacher, context) < 1e-20


def test_trains_a_student_with_its_regressors() -> None:
    teacher = tiny_teacher(neck__out_channels=96, bbox_head__in_channels=96)
    model = build(distilled(tiny_atss(), teacher, None, distill={"hint": {"type": "FitNetsLoss"}}))
    assert [tuple(p.shape) for p in model.terms["hint"].parameters()][:2] == [(96, 64, 1, 1), (96,)]
    losses = losses_of(model, batch((96, 128), (80, 100)))
    assert losses["loss_kd_hint"] > 0
    losses["loss_kd_hint"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.terms["hint"].parameters())
    assert all(p.grad is not None for p in model.neck.parameters())
    assert all(p.grad is None for p in model.bbox_head.parameters()), "features end at the neck"
    assert not any(name.startswith("distill") for name in model.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"align": "pool"}, "FitNetsLoss: align must be one of auto, conv, none, found 'pool'"),
        ({"levels": [0.5]}, "FitNetsLoss: levels must be distinct indices"),
        ({"loss_weight": "x"}, "FitNetsLoss: loss_weight must be a number ≥ 0, found 'x'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FitNetsLoss(**options)
