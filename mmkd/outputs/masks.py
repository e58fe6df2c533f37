"""`masks`: a two-stage detector's mask head, on the regions with objects that the student sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.roi_heads import CascadeRoIHead, HybridTaskCascadeRoIHead, SCNetRoIHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import Tensor, nn

from mmkd.heads.calls import Calls
from mmkd.outputs.place import Place, Reading, register_place
from mmkd.outputs.roi_heads import (
    box_heads,
    fused_features,
    hooked,
    no_roi_head,
    of_batch,
    per_stage,
    plain_maps,
)
from mmkd.outputs.rois import Regions
from mmkd.structures import DistillContext, HeadSpec, Levels, RowOutputs

_Size = tuple[int, int]


@dataclass(frozen=True)
class MaskRegions(Regions):
    """Regions with objects, and the classes whose masks are compared.

    Attributes:
        sizes: per stage, (height, width) of the student's masks.
    """

    sizes: tuple[_Size, ...]


class _Watched:
    """A record of one mask head stage during a loss."""

    def __init__(self) -> None:
        self.rois_N5: Tensor | None = None
        self.masks: Calls[tuple[Tensor | None, tuple[Any, ...]]] = Calls()
        self.scorings: Calls[tuple[Any, ...]] = Calls()


@register_place("masks")
class Masks(Place):
    """Mask heads of the Mask R-CNN and Cascade Mask R-CNN families; a row is a pixel of a region's mask.

    A row's logit comes from the mask of the assigned class; its label is 0 inside the true mask, 1 outside.
    The teacher's mask head runs once on these regions and its own features; masks of another size are resized
    bilinearly. PointRend is read at its coarse mask, before its points. A cascade learns stage by stage from
    a cascade with as many stages; any other cascade teaches the mean of its scores.
    """

    gives = frozenset({"cls_logits", "labels", "label_weights", "padding"})
    sampled = True

    def lacks(self, detector: Any) -> str | None:
        """As `Place.lacks`."""
        if why := no_roi_head(detector):
            return why
        roi_head = detector.roi_head
        if not roi_head.with_mask:
            return "it has no mask head"
        for head in mask_heads(detector):
            if not isinstance(head, FCNMaskHead):
                return f"its {type(head).__name__} does not predict a mask per region"
            if head.class_agnostic and getattr(roi_head, "interleaved", False):
                return "it samples separate regions for its masks and does not expose their classes"
        return None

    def parts(self, detector: Any) -> int:
        """The stages of a cascade; SCNet has one for masks."""
        return len(mask_heads(detector))

    def spec(self, detector: Any) -> HeadSpec:
        """As `Place.spec`."""
        K = box_heads(detector)[-1].num_classes
        return HeadSpec(K, K, True, (), ())

    def of_rows(self, spec: HeadSpec) -> HeadSpec:
        """A pixel has one logit: whether it belongs to the object."""
        return HeadSpec(1, 1, True, (), ())

    @contextmanager
    def watch(self, detector: Any) -> Iterator[list[_Watched]]:
        """As `Place.watch`; one record per stage."""
        count = self.parts(detector)
        extractors = per_stage(detector.roi_head.mask_roi_extractor)
        with ExitStack() as stack:
            yield [
                stack.enter_context(_watch_stage(extractor, mask_head, box_head))
                for extractor, mask_head, box_head in zip(
                    extractors, mask_heads(detector), box_heads(detector)[-count:], strict=True
                )
            ]

    def read(
        self,
        detector: Any,
        seen: Sequence[_Watched],
        feats: Levels,
        data_samples: Sequence[Any],
        part: int | None,
    ) -> Reading:
        """As `Place.read`; the rows of several stages are concatenated."""
        stages = tuple(stage for stage in range(len(seen)) if part in (None, stage))
        K = self.spec(detector).num_classes
        calls = [_last_call(seen[stage], mask_heads(detector)[stage], K, feats) for stage in stages]
        labels_N = torch.cat([(call.target_Rhw < 0.5).flatten().long() for call in calls])
        image_N = [
            call.rois_R5[:, 0]
            .long()
            .repeat_interleave(call.target_Rhw[0].numel() if len(call.rois_R5) else 0)
            for call in calls
        ]
        count_N = torch.ones_like(labels_N, dtype=torch.bool)
        rows = RowOutputs(
            spec=self.of_rows(self.spec(detector)),
            cls_logits_NK=torch.cat([call.logits_Rhw.flatten() for call in calls])[:, None],
            image_N=torch.cat(image_N) % len(data_samples),
        )
        question = MaskRegions(
            tuple(call.rois_R5 for call in calls),
            tuple(call.labels_R for call in calls),
            stages,
            self.parts(detector),
            tuple(sample.img_shape for sample in data_samples),
            tuple((call.target_Rhw.shape[1], call.target_Rhw.shape[2]) for call in calls),
        )
        context = DistillContext(
            valid_N=count_N,
            num_images=len(data_samples),
            data_samples=data_samples,
            labels_N=labels_N,
            padded_N=count_N,
            scored_N=count_N,
        )
        return Reading(rows, context, question)

    def answer(
        self, detector: Any, inner: Any, question: MaskRegions, classes: Sequence[int] | None
    ) -> RowOutputs:
        """As `Place.answer`."""
        roi_head = detector.roi_head
        x = plain_maps(inner)
        more = fused_features(roi_head, x)
        by_stage = self.parts(detector) == question.num_stages
        logits = []
        for stage, rois_R5, labels_R, size in zip(
            question.stages, question.rois, question.labels, question.sizes
        ):
            if not len(rois_R5):
                continue
            rois_R5 = of_batch(rois_R5, len(x[0]))
            masks_RKhw = _masks(roi_head, x, rois_R5, stage if by_stage else None, more)
            if classes is not None:
                labels_R = labels_R.new_tensor(classes)[labels_R]
            masks_Rhw = _of_class(masks_RKhw, labels_R, mask_heads(detector)[-1])
            if masks_Rhw.shape[1:] != size:
                masks_Rhw = F.interpolate(masks_Rhw[:, None], size, mode="bilinear", align_corners=False)
            logits.append(masks_Rhw.flatten())
        return RowOutputs(
            spec=self.of_rows(self.spec(detector)),
            cls_logits_NK=torch.cat([*logits, x[0].new_zeros(0)])[:, None],
        )


def mask_heads(detector: Any) -> list[Any]:
    """The mask heads of a two-stage detector, per stage."""
    return per_stage(detector.roi_head.mask_head)


@contextmanager
def _watch_stage(extractor: nn.Module, mask_head: Any, box_head: Any) -> Iterator[_Watched]:
    seen = _Watched()

    def on_rois(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.rois_N5 = args[1] if len(args) > 1 else kwargs["rois"]

    def on_masks(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.masks.add((seen.rois_N5, args))

    def on_scores(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.scorings.add(args)

    with hooked(
        extractor.register_forward_pre_hook(on_rois, with_kwargs=True),
        mask_head.loss_mask.register_forward_pre_hook(on_masks),
        box_head.loss_cls.register_forward_pre_hook(on_scores),
    ):
        yield seen


@dataclass(frozen=True)
class _Call:
    """The inputs of a stage's mask loss."""

    rois_R5: Tensor
    logits_Rhw: Tensor
    target_Rhw: Tensor
    labels_R: Tensor


def _last_call(seen: _Watched, head: Any, num_classes: int, feats: Levels) -> _Call:
    """The inputs of a stage's loss; empty, with a zero gradient, if there was no object."""
    rois_N5, args = (list(seen.masks) or [(None, ())])[-1]
    if rois_N5 is None:
        nothing = feats[0].flatten()[:0]
        none_Rhw = nothing.reshape(0, 1, 1)
        return _Call(
            nothing.detach().reshape(0, 5),
            none_Rhw,
            none_Rhw.detach(),
            nothing.new_zeros(0, dtype=torch.long),
        )
    masks_RKhw, target_Rhw, labels_R = args
    # A shared extractor is not run on these regions again, and class-agnostic heads report no class.
    if len(rois_N5) != len(masks_RKhw) or head.class_agnostic:
        assigned_N = list(seen.scorings)[-1][1]
        object_N = assigned_N < num_classes
        labels_R = assigned_N[object_N]
        rois_N5 = rois_N5[object_N] if len(rois_N5) == len(object_N) else rois_N5
    return _Call(rois_N5, _of_class(masks_RKhw, labels_R, head), target_Rhw, labels_R)


def _of_class(masks_RKhw: Tensor, labels_R: Tensor, head: Any) -> Tensor:
    """The mask of each region's class, (R, h, w)."""
    if head.class_agnostic:
        return masks_RKhw[:, 0]
    return masks_RKhw[torch.arange(len(labels_R), device=labels_R.device), labels_R]


def _masks(roi_head: Any, x: Levels, rois_R5: Tensor, stage: int | None, more: dict[str, Tensor]) -> Tensor:
    """The teacher's mask logits, (R, K, h, w): of one stage, or of all combined as in testing."""
    if not isinstance(roi_head, CascadeRoIHead):
        masks_RKhw: Tensor = roi_head._mask_forward(x, rois_R5)["mask_preds"]
        return masks_RKhw
    if isinstance(roi_head, SCNetRoIHead):
        relayed = {}
        if roi_head.with_feat_relay:
            boxes = roi_head._bbox_forward(-1, x, rois_R5, **more)
            relayed = {"relayed_feat": roi_head.feat_relay_head(boxes["relayed_feat"])}
        masks_RKhw = roi_head._mask_forward(x, rois_R5, **more, **relayed)["mask_preds"]
        return masks_RKhw
    if isinstance(roi_head, HybridTaskCascadeRoIHead) and stage is None:
        stage = roi_head.num_stages - 1
    if stage is not None:
        masks_RKhw = roi_head._mask_forward(stage, x, rois_R5, **more)["mask_preds"]
        return masks_RKhw
    scores = [
        roi_head._mask_forward(i, x, rois_R5)["mask_preds"].sigmoid() for i in range(roi_head.num_stages)
    ]
    return torch.stack(scores).mean(dim=0).logit(eps=torch.finfo(torch.float32).eps)
