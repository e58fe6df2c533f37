"""The queries of MaskFormer and Mask2Former, and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import MaskFormerHead
from mmdet.models.detectors import MaskFormer
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.heads.observe import Observation, observe
from mmkd.outputs.place import Reading, register_place
from mmkd.outputs.queries import Queries, QueryReading
from mmkd.outputs.query_readers import (
    Predictions,
    QueryReader,
    assigned,
    best_class,
    query_reader,
    register_query_reader,
)
from mmkd.outputs.roi_heads import plain_maps
from mmkd.structures import DistillContext, HeadSpec, Need, RowOutputs


@register_query_reader(MaskFormer)
class MaskFormerReader(QueryReader):
    """Detectors with a `MaskFormerHead`; the first layer of Mask2Former is its queries before the decoder."""

    finds = "masks"

    def lacks(self, detector: Any) -> str | None:  # noqa: D102
        head = detector.panoptic_head
        return (
            None if isinstance(head, MaskFormerHead) else f"its {type(head).__name__} is not a MaskFormerHead"
        )

    def parts(self, detector: Any) -> int:  # noqa: D102
        head = detector.panoptic_head
        layers = len(head.transformer_decoder.layers)
        return layers + 1 if hasattr(head, "query_feat") else layers

    def spec(self, detector: Any) -> HeadSpec:  # noqa: D102
        head = detector.panoptic_head
        return HeadSpec(head.num_classes, head.num_classes + 1, False, (), ())

    def watch(self, detector: Any) -> AbstractContextManager[Any]:  # noqa: D102
        return observe(detector.panoptic_head, labels=("loss_cls",))

    def student(self, detector: Any, seen: Observation, data_samples: Sequence[Any]) -> Predictions:  # noqa: D102
        logits, masks = seen.raw[0]
        logits_LBQK = torch.stack(list(logits))
        counts_LBQ = torch.ones_like(logits_LBQK[..., 0], dtype=torch.bool)
        assert seen.loss_cls_args is not None
        labels_LBQ = assigned(counts_LBQ, seen.loss_cls_args)
        return Predictions(logits_LBQK, None, labels_LBQ, counts_LBQ, masks=list(masks))

    def teacher(self, detector: Any, inner: Any, data_samples: Sequence[Any]) -> Predictions:  # noqa: D102
        logits, masks = detector.panoptic_head(plain_maps(inner), data_samples)
        counts_LBQ = torch.ones_like(logits[-1][None, ..., 0], dtype=torch.bool)
        return Predictions(logits[-1][None], None, None, counts_LBQ, extra={"masks": masks[-1][None]})

    def match(self, detector: Any, part: int, own: RowOutputs, taught: RowOutputs, meta: Any) -> Tensor:
        """As the head does for annotations; if it samples points, the student's random state is restored."""
        masks_Nhw = taught.extra["masks"]
        targets = InstanceData(labels=best_class(taught), masks=(masks_Nhw > 0).long())
        devices = [masks_Nhw.device] if masks_Nhw.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            sampled = detector.panoptic_head._get_targets_single(
                own.cls_logits_NK, own.extra["masks"], targets, meta
            )[-1]
        matched_Q = targets.labels.new_zeros(len(own.cls_logits_NK))
        matched_Q[sampled.pos_inds] = sampled.pos_assigned_gt_inds + 1
        return matched_Q

    def most(self, detector: Any) -> int | None:  # noqa: D102
        most: int | None = (detector.panoptic_head.test_cfg or {}).get("max_per_image")
        return most


@register_place("query_masks")
class QueryMasks(Queries):
    """The masks of MaskFormer's and Mask2Former's queries; a row is a pixel of a query's mask.

    It uses the queries that the student's assigner matches to an object and that have a partner among the
    teacher's, see `Queries`. A pixel's logit says whether it belongs to the object; teacher masks of another
    size are resized bilinearly. Pixels in the padding are not valid.
    """

    sampled = True
    gives = frozenset[Need]({"cls_logits"})
    source = Queries.__name__

    def lacks(self, detector: Any) -> str | None:
        """As `Place.lacks`."""
        reader = query_reader(detector)
        if reader is None or reader.finds != "masks":
            return "it has no mask queries"
        return reader.lacks(detector)

    def offers(self, detector: Any) -> frozenset[Need]:
        """As `Place.offers`."""
        return self.gives

    def of_rows(self, spec: HeadSpec) -> HeadSpec:
        """A pixel has one logit: whether it belongs to the object."""
        return HeadSpec(1, 1, True, (), ())

    def pair(
        self, detector: Any, reading: Reading, said: RowOutputs
    ) -> tuple[RowOutputs, RowOutputs, DistillContext]:
        """As `Place.pair`: the masks of queries with an object and a partner."""
        assert isinstance(reading, QueryReading)
        assert reading.said.masks is not None
        assert reading.context.labels_N is not None
        object_N = reading.context.labels_N < reading.outputs.spec.num_classes
        partner_N = self.match(detector, reading, said)
        chosen_N = (partner_N >= 0) & object_N
        chosen_R = chosen_N.nonzero().squeeze(1)
        layers = [reading.said.masks[part].flatten(0, 1) for part in reading.question.parts]
        of_layers = zip(layers, chosen_N.chunk(len(layers)), strict=True)
        own_Rhw = torch.cat([masks_Nhw[of_N] for masks_Nhw, of_N in of_layers]).float()
        taught_Rhw = said.extra["masks"][partner_N[chosen_R]]
        if taught_Rhw.shape != own_Rhw.shape:
            size = own_Rhw.shape[1:]
            taught_Rhw = F.interpolate(taught_Rhw[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        assert reading.outputs.image_N is not None
        image_R = reading.outputs.image_N[chosen_R]
        valid_N = on_image(own_Rhw, reading.question.data_samples)[image_R].flatten()
        spec, image_N = self.of_rows(reading.outputs.spec), image_R.repeat_interleave(own_Rhw[0:1].numel())
        rows = [
            RowOutputs(spec, masks.flatten()[:, None], image_N=image_N) for masks in (own_Rhw, taught_Rhw)
        ]
        context = DistillContext(valid_N, reading.context.num_images, reading.context.data_samples)
        return rows[0], rows[1], context


def on_image(masks_Rhw: Tensor, data_samples: Sequence[Any]) -> Tensor:
    """Which pixels of a mask are inside the image, not in its padding, B×h×w bool."""
    height, width = masks_Rhw.shape[1:]
    rows_h = torch.arange(height, device=masks_Rhw.device)
    columns_w = torch.arange(width, device=masks_Rhw.device)
    on_image = []
    for sample in data_samples:
        (of_h, of_w), (padded_h, padded_w) = sample.img_shape, sample.batch_input_shape
        on_image.append((rows_h * padded_h < of_h * height)[:, None] & (columns_w * padded_w < of_w * width))
    return torch.stack(on_image)
