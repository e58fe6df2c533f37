"""The queries of detection transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from mmdet.models.dense_heads import DETRHead
from mmdet.models.detectors import DDQDETR, DetectionTransformer
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.heads.observe import Observation, observe
from mmkd.outputs.methods import replaced
from mmkd.outputs.query_readers import Predictions, QueryReader, as_targets, assigned, register_query_reader
from mmkd.structures import HeadSpec, Levels, RowOutputs


@dataclass(frozen=True)
class Encoded:
    """The inputs of a detection transformer's decoder.

    Attributes:
        feats: the neck's output.
        data_samples: those of the batch.
        memory: the output of its ``forward_encoder``.
        decoded: the result of `decode` with the detector's own queries, once computed.
    """

    feats: Levels
    data_samples: Sequence[Any]
    memory: Mapping[str, Any]
    decoded: list[tuple[Tensor, Tensor, Mapping[str, Any]]] = field(default_factory=list)


def decode(
    detector: Any, encoded: Encoded, queries: Mapping[str, Any] | None = None
) -> tuple[Tensor, Tensor, Mapping[str, Any]]:
    """Continue a transformer's own forward from the encoder's output.

    Args:
        detector: the transformer.
        encoded: the encoder's output for a batch.
        queries: the decoder's further inputs, from another detector's ``pre_decoder``; ``None`` for its own.

    Returns:
        Class logits L×B×Q×K; boxes L×B×Q×4, center and size relative to the image, as its head returns them;
        and the decoder's inputs.
    """
    if queries is None and encoded.decoded:
        return encoded.decoded[0]
    given: list[Mapping[str, Any]] = []
    own = detector.pre_decoder

    def pre_decoder(memory: Tensor, **options: Any) -> Any:
        inputs, of_head = own(memory=memory, **options) if queries is None else (dict(queries), {})
        given.append({name: value for name, value in inputs.items() if name != "memory"})
        return {**inputs, "memory": memory}, of_head

    with (
        replaced(detector, "forward_encoder", lambda **_: encoded.memory),
        replaced(detector, "pre_decoder", pre_decoder),
    ):
        logits_LBQK, boxes_LBQ4 = detector.bbox_head(
            **detector.forward_transformer(encoded.feats, encoded.data_samples)
        )
    found = (logits_LBQK, boxes_LBQ4, given[0])
    if queries is None:
        encoded.decoded.append(found)
    return found


@register_query_reader(DetectionTransformer)
class TransformerReader(QueryReader):
    """DETR, Conditional DETR, DAB-DETR, Deformable DETR, DINO and their successors."""

    def lacks(self, detector: Any) -> str | None:  # noqa: D102
        if hasattr(detector, "language_model"):
            return "it compares its queries with a text and has no fixed classes"
        head = detector.bbox_head
        return None if isinstance(head, DETRHead) else f"its head {type(head).__name__} is not a DETRHead"

    def parts(self, detector: Any) -> int:  # noqa: D102
        decoder = detector.decoder
        return len(decoder.layers) if getattr(decoder, "return_intermediate", True) else 1

    def spec(self, detector: Any) -> HeadSpec:  # noqa: D102
        head = detector.bbox_head
        return HeadSpec(head.num_classes, head.cls_out_channels, head.loss_cls.use_sigmoid, (), ())

    def watch(self, detector: Any) -> AbstractContextManager[Any]:  # noqa: D102
        return observe(detector.bbox_head, labels=("loss_cls",))

    def student(self, detector: Any, seen: Observation, data_samples: Sequence[Any]) -> Predictions:
        """The predictions of the matching queries: denoising queries come before, DDQ's dense ones after."""
        logits_LBQK, boxes_LBQ4 = seen.raw[0]
        queries = detector.num_queries * max(1, getattr(detector, "num_patterns", 0))
        stop = logits_LBQK.shape[2] - self.trailing(detector)
        logits_LBQK = logits_LBQK[:, :, stop - queries : stop]
        boxes_LBQ4 = boxes_LBQ4[:, :, stop - queries : stop]
        counts_LBQ = self.counts(detector, logits_LBQK)
        assert seen.loss_cls_args is not None
        labels_LBQ = assigned(counts_LBQ, seen.loss_cls_args)
        return Predictions(logits_LBQK, corners(boxes_LBQ4, data_samples), labels_LBQ, counts_LBQ)

    def teacher(self, detector: Any, inner: Encoded, data_samples: Sequence[Any]) -> Predictions:  # noqa: D102
        logits_LBQK, boxes_LBQ4, _ = decode(detector, inner)
        counts_LBQ = self.counts(detector, logits_LBQK)[-1:]
        boxes_LBQ4 = corners(boxes_LBQ4[-1:], inner.data_samples)
        return Predictions(logits_LBQK[-1:], boxes_LBQ4, None, counts_LBQ)

    def trailing(self, detector: Any) -> int:
        """The number of auxiliary queries after the matching ones in training."""
        return 0

    def counts(self, detector: Any, logits_LBQK: Tensor) -> Tensor:
        """Which queries are used in loss and detections, L×B×Q."""
        return torch.ones_like(logits_LBQK[..., 0], dtype=torch.bool)

    def match(self, detector: Any, part: int, own: RowOutputs, taught: RowOutputs, meta: Any) -> Tensor:  # noqa: D102
        queries = InstanceData(scores=own.cls_logits_NK, bboxes=own.boxes_N4)
        matched: Tensor = detector.bbox_head.assigner.assign(
            queries, as_targets(taught), img_meta=meta
        ).gt_inds
        return matched

    def most(self, detector: Any) -> int | None:  # noqa: D102
        most: int | None = (detector.bbox_head.test_cfg or {}).get("max_per_img")
        return most


@register_query_reader(DDQDETR)
class DDQReader(TransformerReader):
    """DDQ: after each layer it keeps only distinct queries."""

    def trailing(self, detector: Any) -> int:  # noqa: D102
        dense: int = detector.cache_dict["num_dense_queries"]
        return dense

    def counts(self, detector: Any, logits_LBQK: Tensor) -> Tensor:  # noqa: D102
        heads, masks = detector.cache_dict["num_heads"], detector.cache_dict["distinct_query_mask"]
        # The first row of a layer's attention mask, as `DDQDETRHead` reads it; the first layer keeps all
        # queries.
        kept = [mask[::heads, 0] for mask in masks]
        return torch.stack([torch.ones_like(kept[0]), *kept])


def corners(boxes_LBQ4: Tensor, data_samples: Sequence[Any]) -> Tensor:
    """Convert center and size relative to each image to corners in pixels of the input."""
    shapes = [sample.img_shape for sample in data_samples]
    sizes_B14 = boxes_LBQ4.new_tensor([[[w, h, w, h]] for h, w in shapes], dtype=torch.float32)
    return bbox_cxcywh_to_xyxy(boxes_LBQ4.float()) * sizes_B14
