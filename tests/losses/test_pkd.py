from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.losses.pkd import PKDLoss

from ..conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher
from .contract import Case, check_contract, check_same_for_twice_the_batch, make_case


def value_of(case: Case, **options: Any) -> torch.Tensor:
    loss = PKDLoss(**{"loss_weight": 1.0, **options})
    loss.adapt(case[0].spec, case[1].spec)
    return loss.double()(*case)


def part_of_batch(case: Case, image: int) -> Case:
    student, teacher, context = case
    alone = [outputs.map(lambda level: level[image : image + 1]) for outputs in (student, teacher)]
    return alone[0], alone[1], context


@pytest.mark.parametrize("statistics", ["batch", "image"])
@pytest.mark.parametrize("align", ["auto", "conv"])
def test_contract(statistics: Any, align: str) -> None:
    def loss(weight: float) -> PKDLoss:
        return PKDLoss(weight, align=align, statistics=statistics)

    check_contract(loss, part="feats", per_prior=False, identity=align == "auto")
    check_same_for_twice_the_batch(loss(1.0))


def test_published_value_by_hand() -> None:
    student, teacher, _ = case = make_case(sizes=((2, 3), (1, 2)))
    total = 0.0
    for own, taught in zip(student.feats, teacher.feats):
        B, C, H, W = own.shape
        squares = 0.0
        for c in range(C):
            normalised = []
            for level in (own, taught):
                values = [level[b, c, y, x].item() for b in range(B) for y in range(H) for x in range(W)]
                mu = sum(values) / len(values)
                sigma = math.sqrt(sum((v - mu) ** 2 for v in values) / len(values))
                normalised.append([(v - mu) / (sigma + 1e-6) for v in values])
            squares += sum((s - t) ** 2 for s, t in zip(*normalised))
        total += squares / (B * C * H * W) / 2
    torch.testing.assert_close(
        value_of(case, loss_weight=6.0), torch.tensor(6 * total, dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_default_weight() -> None:
    assert PKDLoss().loss_weight == 6


def test_scale_and_offset_of_a_channel_do_not_matter() -> None:
    student, teacher, context = case = make_case()
    scale = torch.tensor([0.1, 1.0, 10.0, 100.0], dtype=torch.float64).reshape(1, 4, 1, 1)
    other = teacher.map(lambda level: level * scale + 3 if level.shape[1] == 4 else level)
    torch.testing.assert_close(value_of((student, other, context)), value_of(case), rtol=1e-4, atol=0)
    assert value_of((other, teacher, context)) < 1e-8, "equal but for scale and offset"


def test_the_size_of_the_map_does_not_matter() -> None:
    student, teacher, context = case = make_case()
    tiled = [outputs.map(lambda level: level.tile(1, 1, 2, 3)) for outputs in (student, teacher)]
    torch.testing.assert_close(value_of((*tiled, context)), value_of(case))


def test_levels_are_summed() -> None:
    case = make_case()
    each = [value_of(case, levels=[level]) for level in (0, 1)]
    torch.testing.assert_close(value_of(case), each[0] + each[1])


def test_statistics_of_an_image_do_not_depend_on_how_a_batch_is_split() -> None:
    case = make_case()
    parts = [part_of_batch(case, image) for image in (0, 1)]
    for statistics, same in (("image", True), ("batch", False)):
        split = sum(value_of(part, statistics=statistics) for part in parts) / 2
        assert torch.isclose(split, value_of(case, statistics=statistics)) == same


def test_a_dead_channel_of_the_student_is_finite() -> None:
    student, teacher, context = make_case()
    dead = student.map(lambda level: level.clone())
    for level in dead.feats:
        level[:, 1] = 0
        level.requires_grad_()
    value = value_of((dead, teacher, context))
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(level.grad).all() for level in dead.feats)


@pytest.mark.parametrize("width", [64, 96])
def test_trains_a_student(width: int) -> None:
    teacher = tiny_teacher(neck__out_channels=width, bbox_head__in_channels=width)
    model = build(distilled(tiny_atss(), teacher, None, distill={"pkd": {"type": "PKDLoss"}}))
    assert len(list(model.terms["pkd"].parameters())) == (0 if width == 64 else 10)
    losses = losses_of(model, batch((96, 128), (80, 100)))
    # Of nearly unrelated maps 1 − r is about 1: five levels, λ = 6.
    assert 10 < losses["loss_kd_pkd"] < 50
    losses["loss_kd_pkd"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.neck.parameters() if p.dim() > 1)
    assert all(p.grad is None for p in model.bbox_head.parameters()), "features end at the neck"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistics": "level"}, "PKDLoss: statistics must be one of batch, image, found 'level'"),
        ({"align": "pool"}, "PKDLoss: align must be one of auto, conv, none, found 'pool'"),
        ({"loss_weight": -6}, "PKDLoss: loss_weight must be a number ≥ 0, found -6"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PKDLoss(**options)
