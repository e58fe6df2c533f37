"""Support for mmdet's RoI heads of the Faster R-CNN and Cascade R-CNN families."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.models.losses import SeesawLoss
from mmdet.models.roi_heads import CascadeRoIHead, SparseRoIHead, StandardRoIHead
from mmdet.models.roi_heads.multi_instance_roi_head import MultiInstanceRoIHead
from torch import Tensor, nn

from mmkd.structures import HeadSpec, Levels


def no_roi_head(detector: Any) -> str | None:
    """Why a detector has no supported box head on sampled regions; ``None`` if it has one."""
    roi_head = getattr(detector, "roi_head", None)
    if roi_head is None:
        return "it has no RoI head"
    name = type(roi_head).__name__
    if isinstance(roi_head, SparseRoIHead):
        return f"the regions of its {name} are learned queries, not sampled"
    if isinstance(roi_head, MultiInstanceRoIHead):
        return f"its {name} predicts several objects per region"
    if not isinstance(roi_head, (StandardRoIHead, CascadeRoIHead)):
        return f"its {name} is neither a StandardRoIHead nor a CascadeRoIHead"
    if not roi_head.with_bbox:
        return f"its {name} has no box head"
    heads = per_stage(roi_head.bbox_head)
    if not all(getattr(head, "with_cls", True) for head in heads):
        return "its box head does not classify"
    loss = heads[-1].loss_cls
    if getattr(loss, "custom_cls_channels", False) and _channels(heads[-1]) is None:
        return f"{type(loss).__name__} uses its class channels in its own way"
    return None


def per_stage(module: Any) -> list[Any]:
    """The modules of a cascade's stages, or the only module."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def box_heads(detector: Any) -> list[Any]:
    """The box heads of a two-stage detector, per stage."""
    return per_stage(detector.roi_head.bbox_head)


def layout(head: Any) -> HeadSpec:
    """The layout of a box head's `scores`."""
    channels = _channels(head)
    assert channels is not None, "`no_roi_head` rules this out"
    return HeadSpec(head.num_classes, channels, channels == head.num_classes, (), ())


def _channels(head: Any) -> int | None:
    """K for sigmoids, K + 1 for a softmax with background; ``None`` if neither."""
    K: int = head.num_classes
    loss = head.loss_cls
    if isinstance(loss, SeesawLoss) or not getattr(loss, "custom_cls_channels", False):
        return K + 1
    channels: int = loss.get_cls_channels(K)
    return channels if channels in (K, K + 1) else None


def scores(head: Any, cls_score_NK: Tensor) -> Tensor:
    """A box head's class logits for comparison, (N, K) or (N, K + 1) with background last.

    Seesaw loss uses one softmax for the classes and one for object against background: the logarithms of
    their products are the logits of a single softmax.
    """
    if not isinstance(head.loss_cls, SeesawLoss):
        return cls_score_NK
    classes_NK = cls_score_NK[:, :-2].float().log_softmax(dim=1)
    object_N2 = cls_score_NK[:, -2:].float().log_softmax(dim=1)
    return torch.cat([classes_NK + object_N2[:, :1], object_N2[:, 1:]], dim=1)


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    """Remove hooks at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def of_batch(rois_N5: Tensor, images: int) -> Tensor:
    """Regions with the teacher's image indices; a Trident student repeats each image once per branch."""
    return torch.cat([rois_N5[:, :1] % images, rois_N5[:, 1:]], dim=1).float()


def plain_maps(inner: Levels) -> Levels:
    """A teacher's features for mmcv's RoIAlign, which silently misreads channels-last maps."""
    return tuple(level.float().contiguous() for level in inner)


def fused_features(roi_head: Any, x: Levels) -> dict[str, Tensor]:
    """The extra features that HTC and SCNet add to each region."""
    more = {}
    if getattr(roi_head, "with_semantic", False):
        more["semantic_feat"] = roi_head.semantic_head(x)[1].contiguous()  # as `plain_maps`
    if getattr(roi_head, "with_glbctx", False):
        more["glbctx_feat"] = roi_head.glbctx_head(x)[1]
    return more
