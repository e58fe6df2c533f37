"""Heads of the ATSS family, with one square anchor per position: ATSS, DDOD, PAA, GFL, TOOD, RTMDet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import ATSSHead, DDODHead, GFLHead, PAAHead, RTMDetHead, TOODHead
from torch import Tensor

from mmkd.heads.adapter import DenseHeadAdapter, register_adapter
from mmkd.structures import Levels

# For float32; the gradient of the logit is at most its reciprocal.
_LEAST_PROBABILITY = 1e-7


@register_adapter(ATSSHead)
class CenternessAdapter(DenseHeadAdapter):
    """Heads with a centerness map per level as their third output."""

    extra_names = ("centerness",)


@register_adapter(PAAHead, DDODHead)
class IoUAdapter(DenseHeadAdapter):
    """Heads with a map of the predicted IoU per level as their third output."""

    extra_names = ("iou",)


@register_adapter(RTMDetHead)
class RTMDetAdapter(DenseHeadAdapter):
    """RTMDet, a subclass of ATSS without centerness; its distances are in pixels."""


@register_adapter(GFLHead)
class GFLAdapter(DenseHeadAdapter):
    """GFL and LD, whose boxes are distributions over distances in strides."""

    def decode(self, head: Any, level: int, priors_M: Tensor, pred_MD: Tensor) -> Tensor:
        """The mean of each distribution, from the centers of the anchors."""
        stride = head.prior_generator.strides[level][0]
        centers_M2 = (priors_M[:, :2] + priors_M[:, 2:]) / 2
        return super().decode(head, level, centers_M2, head.integral(pred_MD) * stride)


@register_adapter(TOODHead)
class TOODAdapter(DenseHeadAdapter):
    """TOOD, which outputs probabilities, and decoded boxes in strides.

    In its first epochs it uses a different assigner and loss.
    """

    label_losses = ("loss_cls", "initial_loss_cls")
    # The logarithm of the same number may differ in the last bits between tensor layouts.
    tolerance = 1e-5

    def cls_logits(self, head: Any, raw: Sequence[Any]) -> Levels:
        """The inverse of the sigmoid."""
        return tuple(stable_logit(level) for level in raw[0])

    def scored(self, scores_NK: Tensor) -> Tensor:
        """Its loss also receives probabilities."""
        return stable_logit(scores_NK)

    def decode(self, head: Any, level: int, priors_M: Tensor, pred_MD: Tensor) -> Tensor:
        """From strides to pixels."""
        return pred_MD * head.prior_generator.strides[level][0]


def stable_logit(probability: Tensor) -> Tensor:
    """The logit log(p / (1 − p)), finite and with finite gradient for all p in [0, 1].

    Args:
        probability: any shape. It is clamped to [1e-7, the largest number below 1 in its dtype]; outside, the
            gradient is 0.

    Returns:
        The logits in float32, or float64 for float64.
    """
    below_one = 1 - torch.finfo(probability.dtype).eps / 2
    exact = probability.to(torch.promote_types(probability.dtype, torch.float32))
    return torch.logit(exact.clamp(_LEAST_PROBABILITY, below_one))
