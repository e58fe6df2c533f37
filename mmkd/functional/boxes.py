"""Overlaps of boxes, and losses based on them; they need only torch.

Shape suffixes: N pairs of boxes, P boxes against G others. A box is x1, y1, x2, y2 in pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmkd.functional.checks import check_choice

Overlap = Literal["giou", "iou", "diou", "log_iou"]

# The smallest divisor, in px²: boxes without area give a finite value and gradient.
AREA_EPS = 1e-7
# Lower bound for the logarithm's argument.
_LEAST_IOU = 1e-6
# The largest coordinate, in px: the areas of larger boxes overflow float32, and inf / inf is NaN.
_FARTHEST = 1e18


def box_iou_loss(student_N4: Tensor, teacher_N4: Tensor, overlap: Overlap = "giou") -> Tensor:
    r"""How far two boxes are from being equal.

    With I the intersection's area, U the union's, C that of the smallest enclosing box, ρ the distance
    between the centers and c the enclosing box's diagonal,

    .. math:: 1 - \mathrm{GIoU} = \frac{U - I}{U} + \frac{C - U}{C}

    is in [0, 2) and has a gradient for disjoint boxes; ``'iou'`` is its first term, ``'diou'`` that term
    :math:`+ \rho^2 / c^2`, and ``'log_iou'`` is :math:`-\log(I / U)` with I / U at least 1e-6, as in mmdet's
    ``IoULoss``. All are 0 for equal boxes and do not change with the scale of the image. A box with x2 < x1
    or y2 < y1 has no area. Coordinates beyond ±1e18, including infinity, are clamped there and have no
    gradient; the value is finite. Half-precision input is computed in float32, also under autocast. The
    teacher gets no gradient.

    Source: Rezatofighi et al., 2019 (https://arxiv.org/abs/1902.09630), section 3; DIoU: Zheng et al., 2020
    (https://arxiv.org/abs/1911.08287). Reference implementation: mmdet's ``GIoULoss`` and ``DIoULoss``, which
    give 1, not 0, for two equal boxes without area.

    Args:
        student_N4: boxes.
        teacher_N4: boxes of the same shape.
        overlap: ``'giou'``, ``'iou'``, ``'diou'`` or ``'log_iou'``.

    Returns:
        (N,), ≥ 0 up to rounding.

    Raises:
        ValueError: the shapes differ or are not (N, 4); a bad option.

    Example:
        >>> student_N4 = torch.tensor([[0.0, 0, 4, 4], [2.0, 0, 6, 4]])
        >>> teacher_N4 = torch.tensor([[0.0, 0, 4, 4], [0.0, 0, 4, 4]])
        >>> box_iou_loss(student_N4, teacher_N4, "iou")
        tensor([0.0000, 0.6667])
    """
    check_choice("overlap", overlap, Overlap)
    _check_pairs(student_N4, teacher_N4)
    dtype = torch.promote_types(student_N4.dtype, torch.float32)
    with torch.autocast(student_N4.device.type, enabled=False):
        student_4N, teacher_4N = (
            boxes.to(dtype).t().contiguous().clamp(-_FARTHEST, _FARTHEST)
            for boxes in (student_N4, teacher_N4.detach())
        )
        return _one_minus_overlap(student_4N, teacher_4N, overlap)


def box_l1_loss(student_N4: Tensor, teacher_N4: Tensor, size_N2: Tensor) -> Tensor:
    r"""The L1 distance of center and size of two boxes, relative to the image size.

    .. math:: \frac{|\Delta x| + |\Delta w|}{W} + \frac{|\Delta y| + |\Delta h|}{H}

    with x, y the center and w, h the size of a box, W and H the size of the image. Coordinates beyond ±1e18
    are clamped there and have no gradient. Half-precision input is computed in float32, also under autocast.
    The teacher gets no gradient.

    Source: the box loss of DETR, Carion et al., 2020 (https://arxiv.org/abs/2005.12872), section 3.1.

    Args:
        student_N4: boxes.
        teacher_N4: boxes of the same shape.
        size_N2: width and height of each box's image, in the same units.

    Returns:
        (N,), ≥ 0.

    Raises:
        ValueError: the shapes differ or are not (N, 4) and (N, 2).

    Example:
        >>> boxes_N4 = torch.tensor([[0.0, 0, 10, 10]])
        >>> box_l1_loss(boxes_N4, boxes_N4 + 5, torch.tensor([[100, 50]]))
        tensor([0.1500])
    """
    _check_pairs(student_N4, teacher_N4)
    if size_N2.shape != (len(student_N4), 2):
        raise ValueError(f"expected sizes ({len(student_N4)}, 2), found {tuple(size_N2.shape)}")
    dtype = torch.promote_types(student_N4.dtype, torch.float32)
    with torch.autocast(student_N4.device.type, enabled=False):
        own_N4, taught_N4 = (
            boxes.to(dtype).clamp(-_FARTHEST, _FARTHEST) for boxes in (student_N4, teacher_N4.detach())
        )
        first_N2, last_N2 = (own_N4 - taught_N4).split(2, dim=1)
        distance_N2 = (first_N2 + last_N2).abs() / 2 + (last_N2 - first_N2).abs()
        return (distance_N2 / size_N2.to(dtype)).sum(dim=1)


def pairwise_iou(boxes_P4: Tensor, others_G4: Tensor) -> Tensor:
    """The IoU of each box with each of the others, (P, G) in [0, 1]; 0 for boxes without area.

    Args:
        boxes_P4: boxes.
        others_G4: the others, in the same units.

    Raises:
        ValueError: they are not (P, 4) and (G, 4).

    Example:
        >>> pairwise_iou(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[0.0, 0, 4, 4], [2.0, 0, 6, 4]]))
        tensor([[1.0000, 0.3333]])
    """
    check_boxes(boxes_P4)
    check_boxes(others_G4)
    boxes_4P1, others_41G = boxes_P4.t()[:, :, None], others_G4.t()[:, None]
    both_PG, union_PG = intersection_and_union(boxes_4P1, others_41G)
    return both_PG / union_PG.clamp(min=AREA_EPS)


def inside_boxes(points_P2: Tensor, boxes_G4: Tensor) -> Tensor:
    """Whether each point (x, y) is strictly inside each box, (P, G) bool.

    Example:
        >>> inside_boxes(torch.tensor([[1.0, 1], [4.0, 1]]), torch.tensor([[0.0, 0, 4, 4]]))
        tensor([[ True],
                [False]])
    """
    after = points_P2[:, None] > boxes_G4[None, :, :2]
    before = points_P2[:, None] < boxes_G4[None, :, 2:]
    return (after & before).all(dim=2)


def check_boxes(boxes: Tensor) -> None:
    """Raise ValueError unless they are (G, 4)."""
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"expected boxes (G, 4), found {tuple(boxes.shape)}")


def _check_pairs(student_N4: Tensor, teacher_N4: Tensor) -> None:
    if student_N4.dim() != 2 or student_N4.shape[1] != 4 or student_N4.shape != teacher_N4.shape:
        raise ValueError(
            f"expected boxes of equal shape (N, 4), found student {tuple(student_N4.shape)} "
            f"and teacher {tuple(teacher_N4.shape)}"
        )


# Below, boxes are (4, …) and broadcast: coordinates first, so that each coordinate is contiguous.


def _one_minus_overlap(a: Tensor, b: Tensor, overlap: Overlap) -> Tensor:
    both, union = intersection_and_union(a, b)
    # Not 1 − both / union, which is 1 for equal boxes without area.
    loss = (union - both) / union.clamp(min=AREA_EPS)
    if overlap == "iou":
        return loss
    if overlap == "log_iou":
        return -(1 - loss).clamp(min=_LEAST_IOU).log()
    if overlap == "diou":
        return loss + center_distance(a, b)
    width, height = _enclosing(a, b)
    enclosing = width * height
    return loss + (enclosing - union) / enclosing.clamp(min=AREA_EPS)


def area(a: Tensor) -> Tensor:
    """The area of boxes (4, …); 0 if a side is negative."""
    return (a[2] - a[0]).clamp(min=0) * (a[3] - a[1]).clamp(min=0)


def intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The areas of the intersection and the union of boxes (4, …)."""
    width = torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0])
    height = torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1])
    both = width.clamp(min=0) * height.clamp(min=0)
    return both, area(a) + area(b) - both


def _enclosing(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    width = torch.maximum(a[2], b[2]) - torch.minimum(a[0], b[0])
    height = torch.maximum(a[3], b[3]) - torch.minimum(a[1], b[1])
    return width.clamp(min=0), height.clamp(min=0)


def center_distance(a: Tensor, b: Tensor) -> Tensor:
    """ρ² / c² of boxes (4, …), see `box_iou_loss`."""
    width, height = _enclosing(a, b)
    distance = ((a[0] + a[2]) - (b[0] + b[2])).square() + ((a[1] + a[3]) - (b[1] + b[3])).square()
    return distance / 4 / (width.square() + height.square()).clamp(min=AREA_EPS)
