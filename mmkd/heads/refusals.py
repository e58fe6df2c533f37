"""Unsupported heads and their errors."""

from __future__ import annotations

from typing import Any

from mmkd.errors import UserError

# Heads that resemble dense heads, or take their place, but have no class scores and box per prior.
NOT_SERVED = {
    "CornerHead": "it predicts corners, not a box per prior",
    "CenterNetHead": "it predicts a heat map, not a box per prior",
    "ATSSVLFusionHead": "it compares regions with a text and has no fixed classes",
    "MaskFormerHead": "it predicts a set of masks, not a box per prior",
    "DETRHead": "it predicts a set of boxes, not one per prior",
    "BaseMaskHead": "it predicts masks, not a box per prior",
    "EmbeddingRPNHead": "its boxes are learned and do not depend on the image",
    "CascadeRPNHead": "it predicts in stages, each from the boxes of the previous one",
}


def no_foreground(head: Any, why: str) -> Exception:
    """The error for a head that does not reveal the assigned classes."""
    return UserError(
        f"Cannot determine the foreground priors of {type(head).__name__}: {why}.",
        expected="a head that passes one class index per prior to its loss_cls, in the order of its outputs",
        found=type(head).__name__,
        remedy="set region='all' or region='teacher' if the loss has that option, or use losses "
        "that do not need assigned classes",
    )


def unsupported(head: Any, why: str) -> Exception:
    """The error for a head without an adapter."""
    return UserError(
        f"{type(head).__name__} cannot be distilled: {why}.",
        expected="a dense head with a prior generator, whose forward gives (cls_scores, bbox_preds, …) "
        "per level, as logits",
        found=type(head).__name__,
        remedy="if it is the teacher's, use feature losses, which need only its neck; otherwise "
        "write an adapter: a DenseHeadAdapter with "
        f"@mmkd.heads.register_adapter({type(head).__name__})",
    )
