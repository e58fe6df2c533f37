"""Heads that predict from points: FCOS and similar, VFNet, CenterNet (update), RepPoints, FoveaBox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import (
    AutoAssignHead,
    CenterNetUpdateHead,
    FCOSHead,
    FoveaHead,
    RepPointsHead,
    VFNetHead,
)
from torch import Tensor

from mmkd.heads.adapter import DenseHeadAdapter, register_adapter
from mmkd.structures import Levels


@register_adapter(FCOSHead)
class FCOSAdapter(DenseHeadAdapter):
    """FCOS, whose distances may be in strides in training; in testing they are in pixels."""

    extra_names = ("centerness",)

    def bbox_pred(self, head: Any, raw: Sequence[Any]) -> Levels:
        """Distances in pixels."""
        return _in_pixels(head, raw[1]) if head.norm_on_bbox and head.training else tuple(raw[1])


@register_adapter(AutoAssignHead)
class AutoAssignAdapter(DenseHeadAdapter):
    """AutoAssign, an FCOS whose distances are always in pixels."""

    extra_names = ("centerness",)


@register_adapter(CenterNetUpdateHead)
class CenterNetUpdateAdapter(DenseHeadAdapter):
    """CenterNet's updated version, whose distances are in strides in training.

    Its classification targets are heat maps; they are also above 0 at unassigned priors.
    """

    def bbox_pred(self, head: Any, raw: Sequence[Any]) -> Levels:
        """Distances in pixels."""
        return _in_pixels(head, raw[1]) if head.training else tuple(raw[1])


@register_adapter(VFNetHead)
class VFNetAdapter(DenseHeadAdapter):
    """VFNet, which returns initial and refined distances in training, only refined ones in testing.

    Its classification targets are the IoU of the box at the assigned class, at least 1e-6.
    """

    soft_targets = True

    def bbox_pred(self, head: Any, raw: Sequence[Any]) -> Levels:
        """Refined distances in pixels."""
        return tuple(raw[-1])


@register_adapter(RepPointsHead)
class RepPointsAdapter(DenseHeadAdapter):
    """RepPoints, which returns two sets of points in training and the refined set's boxes in testing."""

    def bbox_pred(self, head: Any, raw: Sequence[Any]) -> Levels:
        """x1, y1, x2, y2 in strides, from the prior."""
        return tuple(head.points2bbox(level) for level in raw[2]) if head.training else tuple(raw[1])

    def decode(self, head: Any, level: int, priors_M: Tensor, pred_MD: Tensor) -> Tensor:
        """Boxes around points."""
        return pred_MD * head.point_strides[level] + priors_M[:, :2].repeat(1, 2)


@register_adapter(FoveaHead)
class FoveaAdapter(DenseHeadAdapter):
    """FoveaBox, whose distances are logarithms in units of the level's edge length."""

    def decode(self, head: Any, level: int, priors_M: Tensor, pred_MD: Tensor) -> Tensor:
        """Distances from points."""
        distances_M4 = pred_MD.exp() * head.base_edge_list[level]
        points_M2 = priors_M[:, :2]
        return torch.cat([points_M2 - distances_M4[:, :2], points_M2 + distances_M4[:, 2:]], dim=1)


def _in_pixels(head: Any, levels: Sequence[Tensor]) -> Levels:
    return tuple(level * stride for level, stride in zip(levels, head.strides))
