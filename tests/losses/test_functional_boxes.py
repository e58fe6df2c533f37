from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.losses import DIoULoss, GIoULoss
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from torch import Tensor

from mmkd.losses import functional_boxes
from mmkd.losses.functional_boxes import box_iou_loss, localization_kl, square_anchors, valuable_region

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
    with pytest.raises(ValueError, match="expected boxes of one shape"):
        box_iou_loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_bad_overlap() -> None:
    with pytest.raises(ValueError, match="overlap must be one of giou, iou, diou, log_iou, found 'ciou'"):
        box_iou_loss(torch.zeros(1, 4), torch.zeros(1, 4), "ciou")  # type: ignore[arg-type]


def test_localization_kl_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 4 * 6, dtype=torch.float64, generator=generator) * 5
    T, R = 10.0, 6
    expected = []
    for z_s, z_t in zip(student.tolist(), teacher.tolist()):
        total = 0.0
        for side in range(4):
            e_s = [math.exp(z / T) for z in z_s[side * R : side * R + R]]
            e_t = [math.exp(z / T) for z in z_t[side * R : side * R + R]]
            for s, t in zip(e_s, e_t):
                total += t / sum(e_t) * math.log((t / sum(e_t)) / (s / sum(e_s)))
        expected.append(T**2 * total / 4)
    value = localization_kl(student, teacher, temperature=T)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 4), (3, 4)), r"\(N, 4·R\) with R > 1, found \(3, 4\)"),
        (((3, 10), (3, 10)), r"found \(3, 10\)"),
        (((3, 20), (3, 24)), "of one shape"),
        (((20,), (20,)), r"found \(20,\)"),
    ],
)
def test_bad_shapes_of_distributions(shapes: tuple[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        localization_kl(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize(("stride", "scale"), [((8, 8), 8), ((16, 16), 4), ((8, 16), 8)])
def test_anchors_are_those_of_mmdet(stride: tuple[int, int], scale: int) -> None:
    generator = AnchorGenerator(
        strides=[stride], ratios=[1.0], octave_base_scale=scale, scales_per_octave=1, center_offset=0
    )
    assert torch.equal(square_anchors(5, 7, stride, scale), generator.grid_priors([(5, 7)], device="cpu")[0])


SIZES = {8: (16, 20), 16: (8, 10), 32: (4, 5), 64: (2, 3)}


def pyramid() -> tuple[Tensor, list[int]]:
    levels = [square_anchors(*size, (stride, stride), 8) for stride, size in SIZES.items()]
    return torch.cat(levels).double(), [len(level) for level in levels]


def objects(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, dtype=torch.float64, generator=generator) * 80
    side = torch.rand(count, 2, dtype=torch.float64, generator=generator) * 70 + 5
    return torch.cat([corner, corner + side], 1)


def region_by_hand(
    anchors: list[Box], per_level: list[int], gts: list[Box], alpha: float, nearness: str
) -> list[float]:
    weights = [0.0] * len(anchors)
    for gt in gts:
        ious = [areas(a, gt)[0] / areas(a, gt)[1] for a in anchors]
        candidates, start = [], 0
        for count in per_level:
            nearest = sorted(
                range(start, start + count),
                key=lambda m: math.dist(
                    ((anchors[m][0] + anchors[m][2]) / 2, (anchors[m][1] + anchors[m][3]) / 2),
                    ((gt[0] + gt[2]) / 2, (gt[1] + gt[3]) / 2),
                ),
            )
            candidates += [ious[m] for m in nearest[:9]]
            start += count
        mean = sum(candidates) / len(candidates)
        variance = sum((iou - mean) ** 2 for iou in candidates) / (len(candidates) - 1)
        threshold = mean + math.sqrt(variance)
        for m, anchor in enumerate(anchors):
            own = (anchor[2] - anchor[0]) * (anchor[3] - anchor[1])
            near = (areas(anchor, gt)[0] / own if nearness == "iof" else ious[m]) - center_distance(
                anchor, gt
            )
            if alpha * threshold <= near < threshold:
                weights[m] = max(weights[m], ious[m])
    return weights


@pytest.mark.parametrize("nearness", ["iof", "iou"])
@pytest.mark.parametrize("alpha", [0.25, 0.6])
def test_region_by_hand(nearness: Any, alpha: float) -> None:
    anchors, per_level = pyramid()
    gts = objects(6)
    expected = region_by_hand(anchors.tolist(), per_level, gts.tolist(), alpha, nearness)
    value = valuable_region(anchors, per_level, gts, alpha, nearness)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))
    assert 0 < (value > 0).sum() < len(value)


def test_region_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    anchors, per_level = pyramid()
    at_once = valuable_region(anchors, per_level, objects(9))
    monkeypatch.setattr(functional_boxes, "_CHUNK_CPU", 2 * len(anchors))
    assert torch.equal(valuable_region(anchors, per_level, objects(9)), at_once)


def test_region_grows_with_objects_and_as_alpha_falls() -> None:
    anchors, per_level = pyramid()
    sizes = [(valuable_region(anchors, per_level, objects(4), a) > 0).sum() for a in (0.9, 0.5, 0.1)]
    assert sizes[0] < sizes[1] < sizes[2]
    both = valuable_region(anchors, per_level, objects(4))
    first = valuable_region(anchors, per_level, objects(4)[:2])
    second = valuable_region(anchors, per_level, objects(4)[2:])
    assert torch.equal(both, torch.maximum(first, second))


def test_no_objects_no_region() -> None:
    anchors, per_level = pyramid()
    value = valuable_region(anchors, per_level, torch.zeros(0, 4))
    assert value.shape == anchors.shape[:1]
    assert not value.any()
    assert len(valuable_region(torch.zeros(0, 4), [0], objects(2))) == 0


def test_bad_region() -> None:
    anchors, per_level = pyramid()
    with pytest.raises(ValueError, match="found levels of"):
        valuable_region(anchors, per_level[:-1], objects(2))
    with pytest.raises(ValueError, match="nearness must be one of iof, iou, found 'giou'"):
        valuable_region(anchors, per_level, objects(2), nearness="giou")  # type: ignore[arg-type]
