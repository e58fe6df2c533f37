"""Boxes with scores from any source: each of the student's predictions is paired with its best overlap.

Shape suffixes: N rows, M boxes of one image, K class channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmkd.functional import pairwise_iou
from mmkd.heads import adapter_for
from mmkd.heads.observe import observe
from mmkd.outputs.features import dense_head, dense_layout, has_dense_head
from mmkd.outputs.place import PLACES, Place, Reading, register_place
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Levels, Need, RowOutputs

# Below this IoU, a prediction and a box are not of the same object, as in two-stage assigners.
MIN_IOU = 0.5
# Scores of 0 and 1 have no finite logit.
_LEAST = 1e-4


@register_place("boxes")
class Boxes(Place):
    """The student's predictions at its default place, compared with the detections of any teacher.

    Rows are the priors of a dense head, the sampled regions of a RoI head, or the queries of a decoder. Each
    is paired with the teacher's box in its image with the highest IoU; below an IoU of 0.5 the row is not
    valid. The teacher's class logits come from its scores: from all class scores if it reports them, else
    from the top class, with 0 for the others.
    """

    of_detections = True
    sampled = True  # if the detector has regions
    gives: frozenset[Need] = frozenset({"cls_logits", "boxes"})

    def lacks(self, detector: Any) -> str | None:
        """As `Place.lacks`."""
        if has_dense_head(detector) or _below(detector) is not None:
            return None
        return "it predicts no boxes"

    def parts(self, detector: Any) -> int:
        """The parts of the compared place; a dense head has one."""
        below = _below(detector)
        return 1 if below is None else below.parts(detector)

    def spec(self, detector: Any) -> HeadSpec:
        """As `Place.spec`."""
        below = _below(detector)
        spec = dense_layout(detector) if below is None else below.of_rows(below.spec(detector))
        return HeadSpec(spec.num_classes, spec.cls_channels, spec.use_sigmoid, (), ())

    @contextmanager
    def watch(self, detector: Any) -> Iterator[Any]:
        """As `Place.watch`."""
        below = _below(detector)
        with observe(dense_head(detector)) if below is None else below.watch(detector) as seen:
            yield seen

    def read(
        self, detector: Any, seen: Any, feats: Levels, data_samples: Sequence[Any], part: int | None
    ) -> Reading:
        """As `Place.read`."""
        below = _below(detector)
        if below is None:
            rows, valid_N = _rows_of_maps(detector, seen, feats, data_samples)
        else:
            reading = below.read(detector, seen, feats, data_samples, part)
            rows, valid_N = replace(reading.outputs, spec=self.spec(detector)), reading.context.valid_N
        return Reading(rows, DistillContext(valid_N, len(data_samples), data_samples), rows.spec)

    def answer(
        self, detector: Any, inner: Any, question: HeadSpec, classes: Sequence[int] | None
    ) -> RowOutputs:
        """The teacher's boxes, image by image.

        Args:
            detector: not used.
            inner: the teacher's detections, with the student's classes.
            question: the layout of the student's logits.
            classes: not used.
        """
        counts = torch.tensor([len(found) for found in inner])
        boxes_N4 = torch.cat([found.bboxes for found in inner])
        scores_NK = torch.cat([_class_scores(found, question.num_classes) for found in inner])
        return RowOutputs(
            spec=question,
            cls_logits_NK=_logits(scores_NK, question),
            boxes_N4=boxes_N4,
            image_N=torch.arange(len(inner)).repeat_interleave(counts).to(boxes_N4.device),
        )

    def pair(
        self, detector: Any, reading: Reading, said: RowOutputs
    ) -> tuple[RowOutputs, RowOutputs, DistillContext]:
        """As `Place.pair`: each row with its best-overlapping box."""
        rows = reading.outputs
        said_image_N = said.image_N
        assert rows.image_N is not None
        assert said_image_N is not None
        partner_N = torch.full_like(rows.image_N, -1)
        for image in range(reading.context.num_images):
            own = (rows.image_N == image).nonzero().squeeze(1)
            theirs = torch.where(said_image_N == image)[0]
            if len(own) and len(theirs):
                ious = pairwise_iou(rows.flat_boxes()[own].detach().float(), said.flat_boxes()[theirs])
                best, index = ious.max(dim=1)
                partner_N[own] = torch.where(best >= MIN_IOU, theirs[index], -1)
        if not len(said.cls_logits_NK):  # no row can stand in for a missing partner
            said = rows.map(Tensor.detach)
        valid_N = reading.context.valid_N & (partner_N >= 0)
        return rows, said.take(partner_N.clamp(min=0)), replace(reading.context, valid_N=valid_N)


def _below(detector: Any) -> Place | None:
    """The place at which a detector without a dense head predicts boxes."""
    if has_dense_head(detector):
        return None
    boxes: frozenset[Need] = frozenset({"boxes"})
    for name in ("rois", "queries"):
        if PLACES[name].lacks(detector) is None and boxes <= PLACES[name].offers(detector):
            return PLACES[name]
    return None


def _rows_of_maps(
    detector: Any, seen: Any, feats: Levels, data_samples: Sequence[Any]
) -> tuple[RowOutputs, Tensor]:
    head = dense_head(detector)
    adapter = adapter_for(head)
    outputs: DenseOutputs = adapter.outputs(
        head, feats, seen.raw[-1], frozenset({"feats", "cls_logits", "bbox_pred", "extra"})
    )
    outputs = replace(outputs, boxes=adapter.boxes(head, outputs))
    assert outputs.cls_logits is not None
    spec = HeadSpec(outputs.spec.num_classes, outputs.spec.cls_channels, outputs.spec.use_sigmoid, (), ())
    rows = RowOutputs(
        spec=spec,
        cls_logits_NK=outputs.flat_cls_logits(),
        boxes_N4=outputs.flat_boxes(),
        image_N=outputs.image_N,
    )
    shapes = [sample.img_shape for sample in data_samples]
    return rows, adapter.valid_priors(head, outputs.cls_logits, shapes)


def _class_scores(found: Any, K: int) -> Tensor:
    """The scores of M boxes for each of K classes, (M, K) in [0, 1]."""
    if "class_scores" in found:
        scores_MK: Tensor = found.class_scores
        return scores_MK
    of_top_MK = found.scores.new_zeros(len(found), K)
    if len(found):
        of_top_MK[torch.arange(len(found)), found.labels] = found.scores
    return of_top_MK


def _logits(scores_NK: Tensor, spec: HeadSpec) -> Tensor:
    """Logits whose sigmoid, or softmax with background, are these scores."""
    if spec.use_sigmoid:
        return scores_NK.clamp(_LEAST, 1 - _LEAST).logit()
    total_N1 = scores_NK.sum(dim=1, keepdim=True)
    scores_NK = scores_NK / total_N1.clamp(min=1)
    if spec.cls_channels > spec.num_classes:
        scores_NK = torch.cat([scores_NK, 1 - scores_NK.sum(dim=1, keepdim=True)], dim=1)
    return scores_NK.clamp(min=_LEAST).log()
