"""The queries of Sparse R-CNN and QueryInst: learned proposals, refined stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from mmdet.models.detectors import SparseRCNN
from mmdet.models.roi_heads import SparseRoIHead
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.heads.calls import Calls
from mmkd.outputs.methods import recorded
from mmkd.outputs.query_readers import Predictions, QueryReader, as_targets, register_query_reader
from mmkd.outputs.roi_heads import plain_maps
from mmkd.structures import HeadSpec, RowOutputs


@register_query_reader(SparseRCNN)
class SparseReader(QueryReader):
    """Detectors with a `SparseRoIHead`."""

    def lacks(self, detector: Any) -> str | None:  # noqa: D102
        head = detector.roi_head
        return (
            None
            if isinstance(head, SparseRoIHead)
            else f"its head {type(head).__name__} is not a SparseRoIHead"
        )

    def parts(self, detector: Any) -> int:  # noqa: D102
        stages: int = detector.roi_head.num_stages
        return stages

    def spec(self, detector: Any) -> HeadSpec:  # noqa: D102
        head = detector.roi_head.bbox_head[-1]
        sigmoid = head.loss_cls.use_sigmoid
        return HeadSpec(head.num_classes, head.num_classes + (0 if sigmoid else 1), sigmoid, (), ())

    def watch(self, detector: Any) -> AbstractContextManager[Any]:  # noqa: D102
        return recorded(detector.roi_head, "bbox_loss")

    def student(self, detector: Any, seen: Calls[dict[str, Any]], data_samples: Sequence[Any]) -> Predictions:  # noqa: D102
        stages = list(seen)
        labels = [
            torch.stack(
                [
                    _labels(each, detector.roi_head.bbox_head[-1].num_classes)
                    for each in stage["sampling_results"]
                ]
            )
            for stage in stages
        ]
        return _predictions(stages, torch.stack(labels))

    def teacher(self, detector: Any, inner: Any, data_samples: Sequence[Any]) -> Predictions:  # noqa: D102
        feats = plain_maps(inner)
        proposals = detector.rpn_head.predict(feats, data_samples, rescale=False)
        metas = [sample.metainfo for sample in data_samples]
        with recorded(detector.roi_head, "_bbox_forward") as seen:
            detector.roi_head.predict_bbox(feats, metas, proposals, detector.roi_head.test_cfg)
        return _predictions(list(seen)[-1:], None)

    def match(self, detector: Any, part: int, own: RowOutputs, taught: RowOutputs, meta: Any) -> Tensor:  # noqa: D102
        queries = InstanceData(scores=own.cls_logits_NK, bboxes=own.boxes_N4, priors=own.boxes_N4)
        assigner = detector.roi_head.bbox_assigner[part]
        matched: Tensor = assigner.assign(queries, as_targets(taught), img_meta=meta).gt_inds
        return matched

    def most(self, detector: Any) -> int | None:  # noqa: D102
        most: int | None = (detector.roi_head.test_cfg or {}).get("max_per_img")
        return most


def _predictions(stages: Sequence[dict[str, Any]], labels_LBQ: Tensor | None) -> Predictions:
    logits_LBQK = torch.stack([stage["cls_score"] for stage in stages])
    boxes = [stage["decoded_bboxes"].reshape(*logits_LBQK.shape[1:3], 4) for stage in stages]
    counts_LBQ = torch.ones_like(logits_LBQK[..., 0], dtype=torch.bool)
    return Predictions(logits_LBQK, torch.stack(boxes), labels_LBQ, counts_LBQ)


def _labels(sampled: Any, background: int) -> Tensor:
    """The assigned classes of an image's queries, (Q,)."""
    queries = len(sampled.pos_inds) + len(sampled.neg_inds)
    labels_Q: Tensor = sampled.pos_inds.new_full((queries,), background)
    labels_Q[sampled.pos_inds] = sampled.pos_gt_labels
    return labels_Q
