"""Distillation of box side distributions, and the region where it applies; they need only torch.

Shape suffixes: N priors, D box channels (4·R), M anchors of an image, G boxes of ground truth. A box is
x1, y1, x2, y2 in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmkd.functional.boxes import AREA_EPS, area, center_distance, intersection_and_union
from mmkd.functional.checks import check_choice
from mmkd.functional.kl import kl_divergence

Nearness = Literal["iof", "iou"]

# Pairs of anchor and object per chunk: what fits a core's cache; what bounds GPU memory.
_CHUNK_CPU, _CHUNK_GPU = 2**17, 2**24


def localization_kl(student_ND: Tensor, teacher_ND: Tensor, temperature: float = 10.0) -> Tensor:
    r"""KL divergence of the distributions of a box's sides.

    A distributional head predicts R logits for each of the four distances from a prior to the sides of its
    box. With :math:`p = \mathrm{softmax}(z / T)` over the R bins, the value of one prior is

    .. math:: \frac{T^2}{4} \sum_{e=1}^{4} \sum_{r} p^t_{er} \log (p^t_{er} / p^s_{er})

    The sum over r makes it independent of the number of bins; the reference implementation takes the mean, so
    this is R times its value. See `kl_divergence` for precision and gradient.

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

    Example:
        >>> localization_kl(torch.zeros(2, 4 * 17), torch.randn(2, 4 * 17)).shape
        torch.Size([2])
    """
    if student_ND.dim() != 2 or student_ND.shape[1] % 4 or student_ND.shape[1] <= 4:
        raise ValueError(f"expected logits (N, 4·R) with R > 1, found {tuple(student_ND.shape)}")
    if student_ND.shape != teacher_ND.shape:
        raise ValueError(
            f"expected logits of equal shape, found student {tuple(student_ND.shape)} "
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

    They match mmdet's ``AnchorGenerator`` with ``ratios=[1.0]``, ``scales_per_octave=1`` and
    ``center_offset=0``: the position in row r and column c has its center at (c·x stride, r·y stride).

    Args:
        rows: positions from top to bottom.
        columns: positions from left to right.
        stride: (x, y) in pixels.
        scale: the side of an anchor in strides (the smaller stride), mmdet's ``octave_base_scale``.
        device: device of the result.

    Example:
        >>> square_anchors(1, 2, stride=(8, 8), scale=4)
        tensor([[-16., -16.,  16.,  16.],
                [ -8., -16.,  24.,  16.]])
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
    r"""The weight of each anchor in an image's valuable localization region (VLR).

    With :math:`t_g` the threshold that ATSS sets for the object g (mean + standard deviation of its IoU with
    the anchors nearest to its center, a fixed number per level), the anchor m is in the region of g if

    .. math:: \alpha \, t_g \le \mathrm{o}(m, g) - \rho^2 / c^2 < t_g

    where ρ is the distance between the centers, c the diagonal of the smallest box around both, and o an
    overlap. Its weight is its highest IoU with an object whose region it is in. An anchor that is assigned to
    one object may be in the region of another.

    Source: Zheng et al., CVPR 2022 (https://arxiv.org/abs/2102.12252), where o is the IoU, which makes the
    middle term DIoU. The reference implementation (``ATSSAssigner.get_vlr_region`` and ``bbox_overlaps`` of
    HikariTJU/LD) divides the intersection by the anchor's area instead, and adds the weight by IoU.

    Args:
        anchor_M4: anchors, level by level, without those in the padding.
        per_level: the number of anchors per level; their sum is M.
        gt_G4: boxes of the objects; may be none.
        alpha: 0 ≤ α < 1.
        nearness: o; ``'iof'`` as in the reference implementation, ``'iou'`` as in the paper.
        candidates: anchors per level for the threshold.

    Returns:
        (M,) in [0, 1], 0 outside the region.

    Raises:
        ValueError: ``per_level`` does not sum to M; a bad option.

    Example:
        >>> anchor_M4 = square_anchors(8, 8, stride=(8, 8), scale=4)
        >>> weight_M = valuable_region(anchor_M4, [64], torch.tensor([[10.0, 10, 40, 40]]))
        >>> weight_M.shape, bool(weight_M.max() > 0)
        (torch.Size([64]), True)
    """
    check_choice("nearness", nearness, Nearness)
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
    both_GM, union_GM = intersection_and_union(anchor_41M, gt_4G1)
    iou_GM = both_GM / union_GM.clamp(min=AREA_EPS)
    near_GM = iou_GM if nearness == "iou" else both_GM / area(anchor_41M).clamp(min=AREA_EPS)
    near_GM = near_GM - center_distance(anchor_41M, gt_4G1)
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
