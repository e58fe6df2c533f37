"""Heads with objectness: YOLOX and YOLOv3.

Class logits are the classes' own; the heads' scores are σ(class)·σ(objectness).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from mmdet.models.dense_heads import YOLOV3Head, YOLOXHead
from torch import Tensor

from mmkd.heads.adapter import DenseHeadAdapter, register_adapter
from mmkd.heads.labels import classes_of, image_by_image
from mmkd.heads.refusals import no_foreground
from mmkd.structures import HeadSpec, Levels


@register_adapter(YOLOXHead)
class YOLOXAdapter(DenseHeadAdapter):
    """YOLOX, which passes only the foreground to its classification loss, image by image."""

    extra_names = ("objectness",)
    label_losses = ("loss_obj", "loss_cls")

    def decode(self, head: Any, level: int, priors_M: Tensor, pred_MD: Tensor) -> Tensor:
        """Center and logarithm of the size, in strides."""
        stride_2 = priors_M.new_tensor(head.prior_generator.strides[level])
        centers_M2 = pred_MD[:, :2] * stride_2 + priors_M[:, :2]
        halves_M2 = pred_MD[:, 2:].exp() * stride_2 / 2
        return torch.cat([centers_M2 - halves_M2, centers_M2 + halves_M2], dim=1)

    def assigned_labels(
        self,
        head: Any,
        flat_cls_logits_NK: Tensor,
        loss_cls_args: Sequence[Sequence[Any]],
        cls_logits: Levels | None = None,
    ) -> Tensor:
        """The class assigned to each prior, (N,), background = ``num_classes``.

        The objectness targets mark the foreground priors; the class targets, one-hot times IoU, give their
        class. A prior whose box has an IoU of 0 is background, as it is in the classification loss.

        Args:
            head: the head.
            flat_cls_logits_NK: the head's logits, to verify the order.
            loss_cls_args: the positional arguments of the calls of ``loss_obj`` and ``loss_cls``.
            cls_logits: the same logits per level.

        Raises:
            UserError: the calls do not match mmdet's YOLOX, or not all were recorded.
        """
        N = len(flat_cls_logits_NK)
        if cls_logits is None or not loss_cls_args or loss_cls_args[0][0].shape != (N, 1):
            raise no_foreground(head, "it passes only the foreground to its classification loss")
        place_N = image_by_image(cls_logits, flat_cls_logits_NK.shape[1])
        foreground_N = loss_cls_args[0][1].flatten()[place_N] > 0
        labels_N = flat_cls_logits_NK.new_full((N,), head.num_classes, dtype=torch.long)
        if len(loss_cls_args) > 1:
            scored_PK, targets_PK = loss_cls_args[1][:2]
            # From image order to level order, for the foreground only.
            order_P = place_N[foreground_N].argsort().argsort()
            if len(order_P) != len(scored_PK) or not self._same(
                scored_PK[order_P], flat_cls_logits_NK[foreground_N]
            ):
                raise no_foreground(head, "it passes its priors to its loss in its own order")
            labels_N[foreground_N] = classes_of(targets_PK, head.num_classes)[order_P]
        return labels_N


@register_adapter(YOLOV3Head)
class YOLOV3Adapter(DenseHeadAdapter):
    """YOLOv3: its single map has, per base prior, 4 box channels, objectness, and the classes."""

    soft_targets = True

    def spec(self, head: Any) -> HeadSpec:
        """The layout of the head's outputs."""
        return replace(super().spec(head), cls_channels=int(head.num_classes), use_sigmoid=True)

    def cls_logits(self, head: Any, raw: Sequence[Any]) -> Levels:
        """Channels 5 and on."""
        return self._part(head, raw, slice(5, None))

    def bbox_pred(self, head: Any, raw: Sequence[Any]) -> Levels:
        """Channels 0 to 3."""
        return self._part(head, raw, slice(0, 4))

    def extra(self, head: Any, raw: Sequence[Any]) -> dict[str, Levels]:
        """Channel 4."""
        return {"objectness": self._part(head, raw, slice(4, 5))}

    def _part(self, head: Any, raw: Sequence[Any], channels: slice) -> Levels:
        return tuple(
            level.unflatten(1, (-1, head.num_attrib))[:, :, channels].flatten(1, 2) for level in raw[0]
        )

    def decode(self, head: Any, level: int, priors_M: Tensor, pred_MD: Tensor) -> Tensor:
        """The center moves by a sigmoid, at most half a stride."""
        pred_M4 = torch.cat([pred_MD[:, :2].sigmoid(), pred_MD[:, 2:]], dim=1)
        boxes_M4: Tensor = head.bbox_coder.decode(priors_M, pred_M4, head.featmap_strides[level])
        return boxes_M4
