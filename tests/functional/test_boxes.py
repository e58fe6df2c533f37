from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.losses import DIoULoss, GIoULoss
from torch import Tensor

from mmkd.functional.boxes import box_iou_loss, box_l1_loss, inside_boxes, pairwise_iou

Box = list[float]


def random_boxes(count: int, seed: int = 0, size: float = 30, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, dtype=dtype, generator=generator) * 40
    return torch.cat([corner, corner + torch.rand(count, 2, dtype=dtype, generator=generator) * size + 2], 1)


def areas(a: Box, b: Box) -> tuple[float, float, float]:
    """Of the intersection, the union and the enclosing box."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both, union, (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))


def center_distance(a: Box, b: Box) -> float:
    rho = math.hypot((a[0] + a[2]) / 2 - (b[0] + b[2]) / 2, (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2)
    diagonal = math.hypot(max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1]))
    return rho**2 / diagonal**2


def by_hand(a: Box, b: Box, overlap: str) -> float:
    both, union, enclosing = areas(a, b)
    iou = both / union
    if overlap == "giou":
        return 1 - (iou - (enclosing - union) / enclosing)
    return 1 - (iou - center_distance(a, b)) if overlap == "diou" else 1 - iou


@pytest.mark.parametrize("overlap", ["giou", "iou", "diou"])
def test_overlap_by_hand(overlap: Any) -> None:
    student, teacher = random_boxes(40), random_boxes(40, seed=1)
    expected = [by_hand(a, b, overlap) for a, b in zip(student.tolist(), teacher.tolist())]
    assert any(areas(a, b)[0] == 0 for a, b in zip(student.tolist(), teacher.tolist())), "some do not meet"
    torch.testing.assert_close(
        box_iou_loss(student, teacher, overlap), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize("overlap", ["giou", "iou", "diou"])
@pytest.mark.parametrize("edge", [6e4, 1e19, 3e38, math.inf])
def test_boxes_whose_areas_overflow_are_finite(overlap: Any, edge: float) -> None:
    """A head that exponentiates may decode anything; a NaN would stop training."""
    usual, beyond = [1.0, 2.0, 30.0, 40.0], [-edge, -edge, edge, edge]
    student = torch.tensor([usual, beyond, beyond, [edge, edge, edge, edge]], requires_grad=True)
    teacher = torch.tensor([beyond, usual, beyond, usual])
    loss = box_iou_loss(student, teacher, overlap)
    torch.testing.assert_close(loss[:3], torch.tensor([1.0, 1.0, 0.0]))
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("overlap", "theirs"), [("giou", GIoULoss), ("diou", DIoULoss)])
def test_overlap_and_its_gradient_are_mmdets(overlap: Any, theirs: Any) -> None:
    student, teacher = random_boxes(40).requires_grad_(), random_boxes(40, seed=1)
    ours = box_iou_loss(student, teacher, overlap)
    reference = theirs(reduction="none")(student, teacher)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-7)
    ours, reference = (torch.autograd.grad(loss.sum(), student)[0] for loss in (ours, reference))
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("overlap", ["giou", "iou", "diou"])
@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.1, 100), shift=st.floats(-1000, 1000))
def test_overlap_does_not_change_with_scale_or_place(overlap: Any, factor: float, shift: float) -> None:
    student, teacher = random_boxes(10), random_boxes(10, seed=1)
    moved = box_iou_loss(student * factor + shift, teacher * factor + shift, overlap)
    torch.testing.assert_close(moved, box_iou_loss(student, teacher, overlap))


def test_giou_is_within_its_range_and_pulls_boxes_that_do_not_meet() -> None:
    near, far = torch.tensor([[[20.0, 0, 30, 10]], [[1e6, 1e6, 1e6 + 1, 1e6 + 1]]])
    teacher = torch.tensor([[0.0, 0, 10, 10]])
    assert 1 < box_iou_loss(near, teacher) < box_iou_loss(far, teacher) <= 2
    for overlap, pulls in (("giou", True), ("diou", True), ("iou", False)):
        student = near.clone().requires_grad_()
        box_iou_loss(student, teacher, overlap).sum().backward()  # type: ignore[arg-type]
        assert (student.grad is not None and bool((student.grad[0, [0, 2]] > 0).any())) is pulls


@pytest.mark.parametrize("overlap", ["giou", "iou", "diou"])
def test_boxes_without_area_are_finite(overlap: Any) -> None:
    """Inverted, flat, a point; against each other and against a proper one."""
    odd = torch.tensor([[9.0, 9, 3, 3], [9, 3, 3, 9], [3, 3, 3, 9], [5, 5, 5, 5], [0, 0, 10, 10]])
    student = odd.repeat_interleave(5, 0).requires_grad_()
    value = box_iou_loss(student, odd.repeat(5, 1), overlap)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert (value >= 0).all()
    assert (value[::6] == 0).all(), "equal boxes are equal, with or without area"


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher = random_boxes(20).half(), random_boxes(20, seed=1).half()
    value = box_iou_loss(student * 100, teacher * 100)  # areas of more than half precision holds
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, box_iou_loss((student * 100).float(), (teacher * 100).float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(box_iou_loss(student * 100, teacher * 100), value)


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((3, 5), (3, 5)), ((4,), (4,))])
def test_bad_shapes_of_boxes(shapes: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="expected boxes of equal shape"):
        box_iou_loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_bad_overlap() -> None:
    with pytest.raises(ValueError, match="overlap must be one of giou, iou, diou, log_iou, found 'ciou'"):
        box_iou_loss(torch.zeros(1, 4), torch.zeros(1, 4), "ciou")  # type: ignore[arg-type]


def test_inside_is_strict() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 1.0], [1.0, 3.0]])
    assert inside_boxes(points, torch.tensor([[0.0, 0.0, 2.0, 2.0]])).flatten().tolist() == [
        False,
        True,
        False,
        False,
    ]


def test_pairwise_iou_by_hand() -> None:
    a, b = random_boxes(5), random_boxes(4, seed=1)
    expected = [[both / union for both, union, _ in (areas(x, y) for y in b.tolist())] for x in a.tolist()]
    torch.testing.assert_close(pairwise_iou(a, b), torch.tensor(expected, dtype=torch.float64))
    assert (pairwise_iou(torch.zeros(2, 4), torch.zeros(3, 4)) == 0).all()
    assert pairwise_iou(torch.zeros(0, 4), b).shape == (0, 4)
    with pytest.raises(ValueError, match=r"expected boxes \(G, 4\), found \(3,\)"):
        pairwise_iou(a, torch.zeros(3))


def test_l1_of_center_and_size() -> None:
    student = torch.tensor([[0.0, 0, 10, 20], [4.0, 4, 8, 8]], requires_grad=True)
    teacher = torch.tensor([[2.0, 0, 12, 20], [2.0, 2, 10, 10]], requires_grad=True)
    size = torch.tensor([[20, 40], [40, 20]])
    value = box_l1_loss(student, teacher, size)
    torch.testing.assert_close(value, torch.tensor([2 / 20, 4 / 40 + 4 / 20]))
    value.sum().backward()
    assert teacher.grad is None
    assert torch.equal(value, box_l1_loss(student.half(), teacher.half(), size))
    far = box_l1_loss(torch.full((1, 4), float("inf")), torch.zeros(1, 4), size[:1])
    assert torch.isfinite(far).all()
    with pytest.raises(ValueError, match="equal shape"):
        box_l1_loss(student, teacher[:1], size)
    with pytest.raises(ValueError, match=r"expected sizes \(2, 2\)"):
        box_l1_loss(student, teacher, size[:1])
