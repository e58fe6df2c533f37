from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.losses.cwd import CWDLoss

from ..conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher
from .contract import Case, check_contract, check_same_for_twice_the_batch, make_case


def value_of(case: Case, **options: Any) -> torch.Tensor:
    loss = CWDLoss(**{"loss_weight": 1.0, **options})
    loss.adapt(case[0].spec, case[1].spec)
    return loss.double()(*case)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("align", ["auto", "conv"])
def test_contract(temperature: float, align: str) -> None:
    def loss(weight: float) -> CWDLoss:
        return CWDLoss(temperature, weight, align=align)

    check_contract(loss, part="feats", per_prior=False, identity=align == "auto")
    check_same_for_twice_the_batch(loss(1.0))


@pytest.mark.parametrize("T", [1.0, 2.5])
def test_published_value_by_hand(T: float) -> None:
    student, teacher, _ = case = make_case(sizes=((2, 3), (1, 2)))
    expected = 0.0
    for own, taught in zip(student.feats, teacher.feats):
        B, C, H, W = own.shape
        total = 0.0
        for b in range(B):
            for c in range(C):
                distributions = []
                for level in (own, taught):
                    powers = [math.exp(level[b, c, y, x].item() / T) for y in range(H) for x in range(W)]
                    distributions.append([power / sum(powers) for power in powers])
                total += sum(t * math.log(t / s) for s, t in zip(*distributions))
        expected += T**2 / (C * B) * total
    torch.testing.assert_close(
        value_of(case, temperature=T, loss_weight=10.0),
        torch.tensor(10 * expected, dtype=torch.float64),
        rtol=1e-9,
        atol=0,
    )


def test_defaults_are_those_of_the_published_detectors() -> None:
    assert (CWDLoss().temperature, CWDLoss().loss_weight) == (1.0, 10.0)


def test_offset_of_a_channel_does_not_matter() -> None:
    student, teacher, context = case = make_case()
    offset = torch.tensor([0.0, 1.0, -20.0, 300.0], dtype=torch.float64).reshape(1, 4, 1, 1)
    moved = student.map(lambda level: level + offset if level.shape[1] == 4 else level)
    torch.testing.assert_close(value_of((moved, teacher, context)), value_of(case))


def test_copies_of_channels_do_not_change_the_mean() -> None:
    student, teacher, context = case = make_case()
    wider = [outputs.map(lambda level: level.repeat(1, 3, 1, 1)) for outputs in (student, teacher)]
    torch.testing.assert_close(value_of((*wider, context)), value_of(case))


def test_levels_are_summed() -> None:
    case = make_case()
    each = [value_of(case, levels=[level]) for level in (0, 1)]
    torch.testing.assert_close(value_of(case), each[0] + each[1])


def test_salient_positions_count_and_others_hardly_do() -> None:
    """The same error costs more where the teacher's channel is high."""
    student, teacher, context = make_case(sizes=((2, 2),), images=1)
    peak = torch.tensor([[6.0, 0.0], [0.0, 0.0]], dtype=torch.float64).expand(1, 4, 2, 2)
    teacher = teacher.map(lambda level: peak)

    def missing(y: int, x: int) -> torch.Tensor:
        wrong = peak.clone()
        wrong[:, :, y, x] -= 2
        return value_of((student.map(lambda level: wrong), teacher, context))

    assert missing(0, 0) > 10 * missing(1, 1) > 0


def test_a_level_of_one_position_adds_nothing() -> None:
    student, teacher, _ = case = make_case(sizes=((4, 5), (1, 1)))
    feats = [level.requires_grad_() for level in student.feats]
    value = value_of(case)
    value.backward()
    torch.testing.assert_close(value, value_of(case, levels=[0]))
    assert feats[0].grad.abs().sum() > 0
    assert torch.equal(feats[1].grad, torch.zeros_like(feats[1]))
    assert teacher.feats[0].grad is None


@pytest.mark.parametrize("width", [64, 96])
def test_trains_a_student(width: int) -> None:
    teacher = tiny_teacher(neck__out_channels=width, bbox_head__in_channels=width)
    model = build(distilled(tiny_atss(), teacher, None, distill={"cwd": {"type": "CWDLoss"}}))
    assert len(list(model.terms["cwd"].parameters())) == (0 if width == 64 else 10)
    losses = losses_of(model, batch((96, 128), (80, 100)))
    assert losses["loss_kd_cwd"] > 0
    losses["loss_kd_cwd"].backward()
    assert model.neck.fpn_convs[0].conv.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.terms["cwd"].parameters())
    assert all(p.grad is None for p in model.bbox_head.parameters()), "features end at the neck"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "CWDLoss: temperature must be a number above 0, found 0"),
        ({"temperature": "1"}, "CWDLoss: temperature must be a number above 0, found '1'"),
        ({"align": "pool"}, "CWDLoss: align must be one of auto, conv, none, found 'pool'"),
        ({"levels": [1, 1]}, "CWDLoss: levels must be distinct indices"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CWDLoss(**options)
