from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.errors import UserError
from mmkd.losses.feature_base import FeatureLoss
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec

from .contract import Case, make_case


class Difference(FeatureLoss):
    """The mean absolute difference, so that the base can be tested by itself."""

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        return self.loss_weight * sum((s - t).abs().mean() for s, t in self.pairs(student, teacher))


def spec(*widths: int) -> HeadSpec:
    strides = tuple((8 * 2**level,) * 2 for level in range(len(widths)))
    return HeadSpec(3, 3, True, strides, (1,) * len(widths), widths)


def adapted(case: Case, **options: Any) -> Difference:
    torch.manual_seed(0)
    loss = Difference(**options)
    loss.check(case[0].spec, case[1].spec)
    loss.adapt(case[0].spec, case[1].spec)
    return loss.double()


def test_reads_features_alone() -> None:
    assert Difference().needs == {"feats"}


def test_same_widths_need_no_convolution() -> None:
    student, teacher, _ = case = make_case()
    loss = adapted(case)
    assert not list(loss.parameters())
    for (s, t), own, taught in zip(loss.pairs(student, teacher), student.feats, teacher.feats):
        assert torch.equal(s, own)
        assert torch.equal(t, taught)


def test_other_widths_meet_at_the_teachers() -> None:
    student, teacher, _ = case = make_case(channels=(4, 6))
    loss = adapted(case)
    assert len(list(loss.parameters())) == 2 * 2
    for (s, t), own, taught, conv in zip(
        loss.pairs(student, teacher), student.feats, teacher.feats, loss.aligns
    ):
        expected = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], own) + conv.bias[:, None, None]
        torch.testing.assert_close(s, expected)
        assert torch.equal(t, taught)


def test_convolutions_only_where_widths_differ() -> None:
    loss = Difference()
    loss.adapt(spec(8, 8, 4), spec(8, 16, 16))
    assert [type(align) for align in loss.aligns] == [nn.Identity, nn.Conv2d, nn.Conv2d]
    always = Difference(align="conv")
    always.adapt(spec(8, 8), spec(8, 16))
    assert [type(align) for align in always.aligns] == [nn.Conv2d, nn.Conv2d]


def test_the_convolution_trains_and_the_teacher_does_not() -> None:
    student, teacher, context = case = make_case(channels=(4, 6))
    loss = adapted(case)
    feats = tuple(level.requires_grad_() for level in student.feats)
    taught = tuple(level.requires_grad_() for level in teacher.feats)
    loss(student, teacher, context).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())
    assert all(level.grad.abs().sum() > 0 for level in feats)
    assert all(level.grad is None for level in taught)

    def value_of(*levels: Tensor) -> Tensor:
        return loss(replace(student, feats=levels), teacher, context)

    assert torch.autograd.gradcheck(value_of, feats)


def test_chosen_levels_alone_count() -> None:
    student, teacher, context = case = make_case(channels=(4, 6))
    second = adapted(case, levels=[1])
    assert len(second.aligns) == 1
    (pair,) = second.pairs(student, teacher)
    assert torch.equal(pair[1], teacher.feats[1])
    moved = replace(teacher, feats=(teacher.feats[0] + 1, teacher.feats[1]))
    assert second(student, moved, context) == second(student, teacher, context)
    first = adapted(case, levels=[0])
    assert first(student, moved, context) != first(student, teacher, context)


def test_levels_in_any_order_keep_their_convolutions() -> None:
    """The convolution of level 1 is made for the width of level 1."""
    loss = Difference(levels=[1, 0])
    loss.adapt(spec(4, 8), spec(6, 6))
    assert [align.in_channels for align in loss.aligns] == [8, 4]


def test_a_teacher_of_another_size_is_resized() -> None:
    student, teacher, _ = case = make_case(sizes=((4, 6),))
    larger = replace(teacher, feats=(F.interpolate(teacher.feats[0], scale_factor=2, mode="nearest-exact"),))
    ((s, t),) = adapted(case).pairs(student, larger)
    assert s.shape == t.shape == (2, 4, 4, 6)
    # Between two equal neighbours, in the middle of the old position.
    torch.testing.assert_close(t, teacher.feats[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_inside_autocast(dtype: torch.dtype) -> None:
    student, teacher, _ = case = make_case(channels=(4, 6), dtype=torch.float32)
    loss = adapted(case).float()
    half_s, half_t = student.map(lambda x: x.to(dtype)), teacher.map(lambda x: x.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss.pairs(half_s, half_t)
    for (s, t), own, taught, conv in zip(found, half_s.feats, half_t.feats, loss.aligns):
        assert s.dtype == t.dtype == torch.float32
        assert torch.equal(s, F.conv2d(own.float(), conv.weight, conv.bias))
        assert torch.equal(t, taught.float())


def test_a_model_in_half_precision_keeps_working() -> None:
    student, teacher, _ = case = make_case(channels=(4, 6), dtype=torch.bfloat16)
    for s, t in adapted(case).bfloat16().pairs(student, teacher):
        assert s.dtype == t.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"align": "linear"}, "Difference: align must be one of auto, conv, none, found 'linear'"),
        ({"levels": []}, r"levels must be distinct indices ≥ 0 like \[0, 1\], found \[\]"),
        ({"levels": [0, 0]}, r"found \[0, 0\]"),
        ({"levels": [-1]}, r"found \[-1\]"),
        ({"levels": 2}, "found 2"),
        ({"levels": [True]}, r"found \[True\]"),
        ({"levels": "01"}, "found '01'"),
        ({"loss_weight": -1}, "loss_weight must be a number ≥ 0, found -1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Difference(**options)


def test_pairs_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="the student has 2 feature levels and the teacher 3; give both"):
        Difference().check(spec(8, 8), spec(8, 8, 8))
    with pytest.raises(UserError, match=r"levels must be among \[0, 1\], found \[2, 5\]"):
        Difference(levels=[0, 2, 5]).check(spec(8, 8), spec(8, 8))
    with pytest.raises(
        UserError, match=r"found 8 \(student\) and 16 \(teacher\) on level 1; set align='auto'"
    ):
        Difference(align="none").check(spec(8, 8), spec(8, 16))
    Difference(align="none", levels=[0]).check(spec(8, 8), spec(8, 16))
    Difference(align="auto").check(spec(8, 8), spec(8, 16))
