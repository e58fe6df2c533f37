"""A whole detector as one scripted module, from pixels to boxes after NMS.

It combines two traces: the network (preprocessing, backbone, neck, head) runs on the batch, decoding
(mmdet's own `predict_by_feat`, then NMS) on one image at a time in a loop. So batch size, height and width
can all vary.

Shape suffixes: N images, H and W their size, M boxes of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from inspect import signature
from math import ceil, lcm, sqrt
from typing import Any, Literal

import torch
from mmcv.ops import nms
from mmdet.models.dense_heads import FoveaHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor, nn
from torch.nn import functional as F

from mmkd.errors import UserError

Pixels = Literal["rgb", "bgr"]
# The tests export each of these and compare it with PyTorch.
HEADS = (
    "ATSSHead",
    "AutoAssignHead",
    "CenterNetUpdateHead",
    "DDODHead",
    "FCOSHead",
    "FSAFHead",
    "FoveaHead",
    "FreeAnchorRetinaHead",
    "GFLHead",
    "LDHead",
    "PISARetinaHead",
    "RTMDetHead",
    "RTMDetSepBNHead",
    "RetinaHead",
    "RetinaSepBNHead",
    "YOLOFHead",
    "YOLOV3Head",
    "YOLOXHead",
)


def check_exportable(model: Any) -> None:
    """Refuse detectors that cannot be exported correctly.

    Raises:
        UserError: the head or its type of NMS is not supported.
    """
    head = getattr(model, "bbox_head", None)
    stock = next((kind for kind in type(head).__mro__ if kind.__module__.startswith("mmdet.")), type(head))
    if not isinstance(head, BaseDenseHead) or stock.__name__ not in HEADS or hasattr(model, "mask_head"):
        raise UserError(
            "Cannot export this detector to ONNX.",
            expected=f"a single-stage detector with one of {', '.join(HEADS)}",
            found=f"{type(model).__name__} with {stock.__name__ if head is not None else 'no dense head'}",
            remedy="run it in PyTorch, or export the network alone with torch.onnx",
        )
    nms = head.test_cfg.get("nms")
    unknown = set(nms or {}) - {"type", "iou_threshold", "class_agnostic", "split_thr"}
    if not nms or nms.get("type", "nms") != "nms" or unknown:
        raise UserError(
            "Cannot export this kind of NMS to ONNX.",
            expected="test_cfg.nms=dict(type='nms', iou_threshold=…), class_agnostic if wanted",
            found=f"test_cfg.nms={nms}",
            remedy="set it in the config given by --config",
        )


class _Network(nn.Module):
    """From images (N, 3, H, W), 0 to 255, to the head's maps, flattened into one tuple."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, pixels: Pixels, half: bool) -> None:
        super().__init__()
        preprocessor = model.data_preprocessor
        # mmdet loads BGR.
        self.swaps = bool(preprocessor._channel_conversion) == (pixels == "bgr")
        self.divisor, self.pad_value = preprocessor.pad_size_divisor, float(preprocessor.pad_value)
        if isinstance(getattr(model.neck, "upsample", None), nn.Upsample):  # CSPNeXtPAFPN, YOLOXPAFPN
            # It doubles a level to join the next, so sizes must be even; mmdet pads in the pipeline.
            self.divisor = lcm(self.divisor, *(max(s) for s in model.bbox_head.prior_generator.strides))
        normal = preprocessor._enable_normalize
        self.register_buffer("mean", preprocessor.mean.clone() if normal else torch.zeros(3, 1, 1))
        self.register_buffer("std", preprocessor.std.clone() if normal else torch.ones(3, 1, 1))
        self.dtype = torch.float16 if half else torch.float32
        self.model = deepcopy(model).to(self.dtype)
        self.lengths: list[int | None] = []

    def forward(self, images_N3HW: Tensor) -> tuple[Tensor, ...]:
        x_N3HW = images_N3HW.float()
        if self.swaps:
            x_N3HW = x_N3HW.flip(1)
        x_N3HW = (x_N3HW - self.mean) / self.std
        height, width = x_N3HW.shape[-2:]
        d = self.divisor
        x_N3HW = F.pad(x_N3HW, (0, (d - width % d) % d, 0, (d - height % d) % d), value=self.pad_value)
        outs = self.model.bbox_head(self.model.extract_feat(x_N3HW.to(self.dtype)))
        self.lengths = [None if maps[0] is None else len(maps) for maps in outs]
        return tuple(level.float() for maps in outs for level in maps if level is not None)


class _NeverEmpty:
    """A box coder that decodes one extra row, because tracing loses mmdet's shortcut for zero boxes."""

    def __init__(self, coder: Any) -> None:
        self.coder, self.encode_size = coder, coder.encode_size

    def decode(self, priors_MP: Tensor, preds_MK: Tensor, max_shape: Any = None) -> Tensor:
        priors_MP = torch.cat([priors_MP, priors_MP.new_ones(1, priors_MP.shape[1])])
        preds_MK = torch.cat([preds_MK, preds_MK.new_zeros(1, preds_MK.shape[1])])
        decoded_M4: Tensor = self.coder.decode(priors_MP, preds_MK, max_shape=max_shape)
        return decoded_M4[:-1]


class _Decoder(nn.Module):
    """From one image's maps to its boxes, scores and labels after NMS."""

    def __init__(self, head: Any, lengths: Sequence[int | None]) -> None:
        super().__init__()
        self.head, self.lengths = deepcopy(head), lengths
        self.cfg = deepcopy(head.test_cfg)
        self.min_size = self.cfg.get("min_bbox_size", -1)
        self.cfg.min_bbox_size = -1  # applied after clipping, below
        coder = getattr(head, "bbox_coder", None)
        self.clips = bool(getattr(coder, "clip_border", False))
        # Without a shape, mmdet does not clip. With one, tracing would write its numbers into the file.
        self.shape: tuple[int, int] | None = None
        self.margin = 0.0
        if isinstance(head, FoveaHead):  # always clips, to the index of the last pixel
            self.clips, self.shape, self.margin = True, (2**30, 2**30), 1.0
        if coder is not None and "max_shape" in signature(coder.decode).parameters:
            self.head.bbox_coder = _NeverEmpty(coder)

    def forward(
        self, index_1: Tensor, maps: tuple[Tensor, ...], size_2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        levels = iter([level.index_select(0, index_1) for level in maps])
        count = next(length for length in self.lengths if length)
        outs = [[next(levels) if n else None for _ in range(n or count)] for n in self.lengths]
        (found,) = self.head.predict_by_feat(
            *outs, batch_img_metas=[{"img_shape": self.shape}], cfg=self.cfg, rescale=False, with_nms=False
        )
        boxes_M4, scores_M, labels_M = found.bboxes, found.scores, found.labels
        if self.clips:
            boxes_M4 = torch.minimum(boxes_M4.clamp(min=0), size_2[[1, 0, 1, 0]] - self.margin)
        if self.min_size >= 0:
            sizes_M2 = boxes_M4[:, 2:] - boxes_M4[:, :2]
            large_M = (sizes_M2[:, 0] > self.min_size) & (sizes_M2[:, 1] > self.min_size)
            boxes_M4, scores_M, labels_M = boxes_M4[large_M], scores_M[large_M], labels_M[large_M]
        apart_M4 = boxes_M4
        if not self.cfg.nms.get("class_agnostic"):
            farthest = torch.cat([boxes_M4.reshape(-1), size_2]).max()  # there may be no boxes
            apart_M4 = boxes_M4 + (labels_M.to(boxes_M4) * (farthest + 1))[:, None]
        kept = torch.ops.mmkd.nms(apart_M4, scores_M, self.cfg.nms.iou_threshold)
        kept = kept[: self.cfg.get("max_per_img")]  # YOLOX has no limit
        return boxes_M4[kept], scores_M[kept], labels_M[kept]


class _Detector(nn.Module):
    """Network and decoder; scripted, so that the loop over images stays a loop."""

    def __init__(self, network: Any, decoder: Any) -> None:
        super().__init__()
        self.network, self.decoder = network, decoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        maps = self.network(images)
        indices = torch.arange(images.shape[0])
        size = torch.tensor([images.shape[2], images.shape[3]], dtype=torch.float32)
        all_boxes, all_scores, all_labels, all_images = [], [], [], []
        for i in range(images.shape[0]):
            boxes, scores, labels = self.decoder(indices[i : i + 1], maps, size)
            all_boxes.append(boxes)
            all_scores.append(scores)
            all_labels.append(labels)
            all_images.append(torch.full_like(labels, i))
        return torch.cat(all_boxes), torch.cat(all_scores), torch.cat(all_labels), torch.cat(all_images)


# Tracing keeps a custom operator as one node, which `_onnx_nms` translates.
_OPERATORS = torch.library.Library("mmkd", "DEF")
_OPERATORS.define("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
_OPERATORS.impl("nms", lambda boxes, scores, iou_threshold: nms(boxes, scores, iou_threshold)[1], "CPU")


def traced_detector(model: Any, pixels: Pixels, half: bool, size: tuple[int, int]) -> Any:
    """The detector as one scripted module."""
    head = model.bbox_head
    network = _Network(model, pixels, half).requires_grad_(False).eval()
    images_N3HW = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    maps = torch.jit.trace(network, images_N3HW, check_trace=False)
    # mmdet takes min(nms_pre, number of candidates). With enough candidates the trace stores nms_pre, and
    # ONNX's slice accepts fewer.
    side = ceil(2 * sqrt(max(head.test_cfg.get("nms_pre", 0), 1)))
    generator = torch.Generator().manual_seed(0)
    example = tuple(
        torch.randn(1, level.shape[1], side, side, generator=generator) * 4 for level in maps(images_N3HW)
    )
    decoder = _Decoder(head, network.lengths).requires_grad_(False).eval()
    size_2 = torch.tensor([16.0 * side, 16.0 * side])
    inputs = (torch.tensor([0]), example, size_2)
    return torch.jit.script(_Detector(maps, torch.jit.trace(decoder, inputs, check_trace=False)))
