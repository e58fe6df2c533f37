"""Distillation losses on boxes, and the priors that they are for; torch is all they need.

Shape suffixes: N priors, D box channels (4·R), M anchors of an image, G boxes of ground truth. A box is
x1, y1, x2, y2 in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mmkd.losses.functional import kl_divergence

Overlap = Literal["giou", "iou", "diou", "log_iou"]
Nearness = Literal["iof", "iou"]

# The smallest divisor, in px²: a box without area gives a finite value and gradient.
_EPS = 1e-7
# Of which there is a logarithm.
_LEAST_IOU = 1e-6
# The largest coordinate, in px: the areas of larger boxes overflow float32, and inf / inf is NaN.
_FARTHEST = 1e18
# Pairs of anchor and object at a time: what fits a core's cache; what bounds the memory of a GPU.
_CHUNK_CPU, _CHUNK_GPU = 2**17, 2**24


def box_iou_loss(student_N4: Tensor, teacher_N4: Tensor, overlap: Overlap = "giou") -> Tensor:
    r"""How far two boxes are from being the same.

    With I the area of the intersection, U of the union, C of the smallest enclosing box, ρ the distance of
    the centers and c the diagonal of C,

    .. math:: 1 - \mathrm{GIoU} = \frac{U - I}{U} + \frac{C - U}{C}

    is in [0, 2) and has a gradient where boxes do not meet; ``'iou'`` is its first term, ``'diou'`` that
    term :math:`+ \rho^2 / c^2`, and ``'log_iou'`` is :math:`-\log(I / U)` with I / U at least 1e-6, as in
    mmdet's ``IoULoss``. All are 0 for equal boxes and do not change with the scale of the image. A
    box with x2 < x1 or y2 < y1 has no area, and a coordinate beyond ±1e18, infinite ones included, counts as
    that and has no gradient; the value is finite. Half-precision input is computed in float32, also under
    autocast. The teacher gets no gradient.

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
    """
    check_overlap(overlap)
    if student_N4.dim() != 2 or student_N4.shape[1] != 4 or student_N4.shape != teacher_N4.shape:
        raise ValueError(
            f"expected boxes of one shape (N, 4), found student {tuple(student_N4.shape)} "
            f"and teacher {tuple(teacher_N4.shape)}"
        )
    dtype = torch.promote_types(student_N4.dtype, torch.float32)
    with torch.autocast(student_N4.device.type, enabled=False):
        student_4N, teacher_4N = (
            boxes.to(dtype).t().contiguous().clamp(-_FARTHEST, _FARTHEST)
            for boxes in (student_N4, teacher_N4.detach())
        )
        return _one_minus_overlap(student_4N, teacher_4N, overlap)


def check_overlap(overlap: str) -> None:
    """Raise ValueError if there is no such measure."""
    if overlap not in get_args(Overlap):
        raise ValueError(f"overlap must be one of {', '.join(get_args(Overlap))}, found {overlap!r}")


def _one_minus_overlap(a: Tensor, b: Tensor, overlap: Overlap) -> Tensor:
    """Of boxes (4, …) that broadcast: coordinates first, so that each is contiguous."""
    both, union = _intersection(a, b), _area(a) + _area(b)
    union = union - both
    # Not 1 − both / union, which is 1 for equal boxes without area.
    loss = (union - both) / union.clamp(min=_EPS)
    if overlap == "iou":
        return loss
    if overlap == "log_iou":
        return -(1 - loss).clamp(min=_LEAST_IOU).log()
    if overlap == "diou":
        return loss + _center_distance(a, b)
    width, height = _enclosing(a, b)
    enclosing = width * height
    return loss + (enclosing - union) / enclosing.clamp(min=_EPS)


def _area(a: Tensor) -> Tensor:
    return (a[2] - a[0]).clamp(min=0) * (a[3] - a[1]).clamp(min=0)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    width = torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0])
    height = torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1])
    return width.clamp(min=0) * height.clamp(min=0)


def _enclosing(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    width = torch.maximum(a[2], b[2]) - torch.minimum(a[0], b[0])
    height = torch.maximum(a[3], b[3]) - torch.minimum(a[1], b[1])
    return width.clamp(min=0), height.clamp(min=0)


def _center_distance(a: Tensor, b: Tensor) -> Tensor:
    """ρ² / c²."""
    width, height = _enclosing(a, b)
    distance = ((a[0] + a[2]) - (b[0] + b[2])).square() + ((a[1] + a[3]) - (b[1] + b[3])).square()
    return distance / 4 / (width.square() + height.square()).clamp(min=_EPS)


def localization_kl(student_ND: Tensor, teacher_ND: Tensor, temperature: float = 10.0) -> Tensor:
    r"""KL divergence of the distributions of a box's sides.

    A distributional head gives R logits for each of the four distances of a prior to the sides of its box.
    With :math:`p = \mathrm{softmax}(z / T)` over the R the value of one prior is

    .. math:: \frac{T^2}{4} \sum_{e=1}^{4} \sum_{r} p^t_{er} \log (p^t_{er} / p^s_{er})

    The sum over r makes it independent of how finely the distances are divided; the reference implementation
    takes the mean, so this is R times its value. See `kl_divergence` for precision and gradient.

    Source: Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022
    (https://arxiv.org/abs/2102.12252). Reference implementation: ``loss_ld`` of mmdet's ``LDHead``.

    Args:
        student_ND: logits, D = 4·R, side by side.
        teacher_ND: logits of the same shape.
        temperature: T > 0.

    Returns:
        (N,), ≥ 0 up to rounding.

    Raises:
        ValueError: the shapes differ or are not (N, 4·R) with R > 1; a bad temperature.
    """
    if student_ND.dim() != 2 or student_ND.shape[1] % 4 or student_ND.shape[1] <= 4:
        raise ValueError(f"expected logits (N, 4·R) with R > 1, found {tuple(student_ND.shape)}")
    if student_ND.shape != teacher_ND.shape:
        raise ValueError(
            f"expected logits of one shape, found student {tuple(student_ND.shape)} "
            f"and teacher {tuple(teacher_ND.shape)}"
        )
    R = student_ND.shape[1] // 4
    side_by_side = kl_divergence(
        student_ND.reshape(-1, R), teacher_ND.reshape(-1, R), temperature=temperature, reduction="none"
    )
    return side_by_side.reshape(-1, 4).mean(dim=1)


def square_anchors(
    rows: int, columns: int, stride: tuple[int, int], scale: float, device: torch.device | None = None
) -> Tensor:
    """The square anchors of one level of ATSS and GFL, (rows·columns, 4), float32.

    Those of mmdet's ``AnchorGenerator`` with ``ratios=[1.0]``, ``scales_per_octave=1`` and
    ``center_offset=0``: the position in row r and column c has its center at (c·x stride, r·y stride).

    Args:
        rows: positions from top to bottom.
        columns: positions from left to right.
        stride: (x, y) in pixels.
        scale: the side of an anchor in strides (the smaller one), mmdet's ``octave_base_scale``.
        device: of the result.
    """
    y, x = torch.meshgrid(
        torch.arange(rows, device=device) * float(stride[1]),
        torch.arange(columns, device=device) * float(stride[0]),
        indexing="ij",
    )
    center_M2 = torch.stack([x.flatten(), y.flatten()], dim=1)
    half = min(stride) * scale / 2
    return torch.cat([center_M2 - half, center_M2 + half], dim=1)


@torch.no_grad()
def valuable_region(
    anchor_M4: Tensor,
    per_level: Sequence[int],
    gt_G4: Tensor,
    alpha: float = 0.25,
    nearness: Nearness = "iof",
    candidates: int = 9,
) -> Tensor:
    r"""The valuable localization region (VLR) of an image, and how much each of its anchors counts.

    With :math:`t_g` the threshold that ATSS sets for the object g (mean + standard deviation of its IoU with
    the anchors whose centers are next to its own, so many per level), the anchor m is in the region of g if

    .. math:: \alpha \, t_g \le \mathrm{o}(m, g) - \rho^2 / c^2 < t_g

    where ρ is the distance of the centers, c the diagonal of the smallest box around both, and o an overlap.
    It counts by its highest IoU with an object in whose region it is. An anchor that is assigned to one
    object may be in the region of another.

    Source: Zheng et al., CVPR 2022 (https://arxiv.org/abs/2102.12252), where o is the IoU, so that the middle
    is DIoU. The reference implementation (``ATSSAssigner.get_vlr_region`` and ``bbox_overlaps`` of
    HikariTJU/LD) divides the intersection by the area of the anchor instead, and adds the weight by IoU.

    Args:
        anchor_M4: anchors, level by level, those in the padding left out.
        per_level: how many are of each level; their sum is M.
        gt_G4: boxes of the objects; may be none.
        alpha: 0 ≤ α < 1.
        nearness: o; ``'iof'`` as in the reference implementation, ``'iou'`` as in the paper.
        candidates: anchors per level for the threshold.

    Returns:
        (M,) in [0, 1], 0 outside the region.

    Raises:
        ValueError: ``per_level`` does not sum to M; a bad option.
    """
    if nearness not in get_args(Nearness):
        raise ValueError(f"nearness must be one of {', '.join(get_args(Nearness))}, found {nearness!r}")
    if sum(per_level) != len(anchor_M4):
        raise ValueError(f"expected {len(anchor_M4)} anchors, found levels of {list(per_level)}")
    weight_M = anchor_M4.new_zeros(len(anchor_M4))
    if not len(gt_G4) or not len(anchor_M4):
        return weight_M
    anchor_41M = anchor_M4.t().contiguous()[:, None]
    chunk = _CHUNK_CPU if anchor_M4.device.type == "cpu" else _CHUNK_GPU
    with torch.autocast(anchor_M4.device.type, enabled=False):
        for some_G4 in gt_G4.split(max(1, chunk // len(anchor_M4))):
            weight_GM = _weights_by_object(
                anchor_41M, list(per_level), some_G4.t()[:, :, None], alpha, nearness, candidates
            )
            weight_M = torch.maximum(weight_M, weight_GM.amax(dim=0))
    return weight_M


def _weights_by_object(
    anchor_41M: Tensor,
    per_level: list[int],
    gt_4G1: Tensor,
    alpha: float,
    nearness: Nearness,
    candidates: int,
) -> Tensor:
    both_GM = _intersection(anchor_41M, gt_4G1)
    iou_GM = both_GM / (_area(anchor_41M) + _area(gt_4G1) - both_GM).clamp(min=_EPS)
    near_GM = iou_GM if nearness == "iou" else both_GM / _area(anchor_41M).clamp(min=_EPS)
    near_GM = near_GM - _center_distance(anchor_41M, gt_4G1)
    center_21M, center_2G1 = ((boxes[:2] + boxes[2:]) / 2 for boxes in (anchor_41M, gt_4G1))
    distance_GM = (center_21M - center_2G1).square().sum(dim=0)
    nearest = [
        iou.gather(1, distance.topk(min(candidates, distance.shape[1]), largest=False).indices)
        for iou, distance in zip(iou_GM.split(per_level, dim=1), distance_GM.split(per_level, dim=1))
    ]
    std_G1, mean_G1 = torch.std_mean(torch.cat(nearest, dim=1), dim=1, keepdim=True)
    threshold_G1 = mean_G1 + std_G1
    inside_GM = (near_GM < threshold_G1) & (near_GM >= alpha * threshold_G1)
    return torch.where(inside_GM, iou_GM, 0.0)
