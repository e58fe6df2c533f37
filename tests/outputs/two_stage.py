"""Two-stage detectors of mmdet's zoo made small."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from mmdet.models.backbones.trident_resnet import TridentConv
from mmdet.testing import demo_mm_inputs, demo_mm_proposals
from mmengine.config import ConfigDict
from torch import nn

from mmkd.compat import load_config

from ..conftest import build
from ..heads.cases import STOCK_CONFIGS

FASTER = "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
MASK = "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
CASCADE = "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py"
CASCADE_MASK = "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py"
HTC = "htc/htc_r50_fpn_1x_coco.py"
SCNET = "scnet/scnet_r50_fpn_1x_coco.py"
TRIDENT = "tridentnet/tridentnet_r50-caffe_1x_coco.py"
MASK_C4 = "mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py"

_WIDTHS = {
    "in_channels", "out_channels", "feat_channels", "conv_out_channels", "fc_out_channels", "ins_channels",
    "cls_in_channels", "reg_in_channels", "cls_out_channels", "reg_offset_out_channels",
    "reg_cls_out_channels", "point_feat_channels", "out_conv_channels", "channels", "num_groups",
}  # fmt: skip


@lru_cache
def _loaded(name: str) -> Any:
    return load_config(STOCK_CONFIGS / name).model


def small(name: str, num_classes: int = 3) -> Any:
    """A stock config at a sixteenth of its width, with few regions for each image."""
    cfg = copy.deepcopy(_loaded(name))
    cfg.data_preprocessor.pop("batch_augments", None)
    if cfg.backbone.type == "TridentResNet":
        cfg.backbone.update(base_channels=4, trident_dilations=(1, 1, 1))  # the teacher has one branch alone
        cfg.roi_head.pop("shared_head")
        cfg.rpn_head.in_channels = cfg.roi_head.bbox_roi_extractor.out_channels = 1024
        cfg.roi_head.bbox_head.in_channels = 1024
        cfg.roi_head.bbox_roi_extractor.roi_layer.output_size = 7
    shared_head = "shared_head" in cfg.roi_head
    _narrow(cfg, num_classes, widths=set() if shared_head else _WIDTHS)
    if shared_head:  # the width of mmdet's ResLayer is fixed
        if cfg.backbone.type == "ResNet":
            cfg.roi_head.shared_head.depth = cfg.backbone.depth = 18
            for part in (cfg.rpn_head, cfg.roi_head.bbox_roi_extractor):
                part["in_channels" if "in_channels" in part else "out_channels"] = 256
            cfg.roi_head.bbox_head.in_channels = 512
            if "mask_head" in cfg.roi_head:
                cfg.roi_head.mask_head.in_channels = 512
        for name in ("bbox_roi_extractor", "mask_roi_extractor"):
            if cfg.roi_head.get(name):
                cfg.roi_head[name].roi_layer.output_size = 4
        cfg.roi_head.bbox_head.roi_feat_size = 2
        cfg.train_cfg.rcnn.mask_size = 4
        cfg.rpn_head.feat_channels = 16
    elif cfg.backbone.type == "ResNet":
        cfg.backbone.update(depth=18, base_channels=8)
        neck = cfg.neck[0] if isinstance(cfg.neck, list) else cfg.neck
        neck.in_channels = [8, 16, 32, 64]
    elif cfg.backbone.type == "DetectoRS_ResNet":
        cfg.backbone.base_channels = cfg.neck.rfp_backbone.base_channels = 4
    return cfg


def _narrow(part: Any, num_classes: int, widths: set[str]) -> None:
    for key, value in list(part.items()):
        if key in ("init_cfg", "pretrained"):
            part.pop(key)
        elif isinstance(value, ConfigDict):
            _narrow(value, num_classes, widths)
        elif isinstance(value, list) and value and isinstance(value[0], ConfigDict):
            for each in value:
                _narrow(each, num_classes, widths)
        elif key in widths:
            part[key] = [x // 16 for x in value] if isinstance(value, list) else max(value // 16, 1)
        elif key == "num_classes" and value in (80, 601, 1203):
            part[key] = num_classes
        elif key == "num" and "pos_fraction" in part:
            part[key] = 16


def batch(images: int = 2, masks: bool = True, proposals: bool = False) -> Any:
    """Images of different sizes, with objects of 3 classes."""
    shapes = [(3, 96, 128), (3, 80, 96)][:images]
    data = demo_mm_inputs(
        images, shapes, num_items=[4, 2][:images], num_classes=3, with_mask=masks, with_semantic=True,
        sem_seg_output_strides=8,
    )  # fmt: skip
    if proposals:
        for sample, found in zip(
            data["data_samples"], demo_mm_proposals([list(shape) for shape in shapes], 20)
        ):
            sample.proposals = found
    return data


def pair(
    folder: Path, student: Any, teacher: Any, distill: dict[str, Any], *, twins: bool = False, **meta: Any
) -> Any:
    """A student in training mode, and a teacher of random weights that has opinions.

    Args:
        folder: where the teacher's checkpoint goes.
        student: its model config.
        teacher: likewise.
        distill: the losses.
        twins: whether the student begins with all of the teacher's weights.
        meta: of the checkpoint.
    """
    stock = build(teacher, seed=3)
    with torch.no_grad():
        for module in stock.modules():
            if isinstance(module, TridentConv):  # whose weights mmdet leaves as the memory was
                module.weight.normal_(0, 0.02)
        for name, parameter in stock.named_parameters():
            if name.startswith("roi_head.") and parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter) * parameter.std().clamp(min=0.02))
    checkpoint = str(folder / "teacher.pth")
    torch.save({"meta": meta, "state_dict": stock.state_dict()}, checkpoint)
    cfg = copy.deepcopy(student)
    entry = {"config": {"model": teacher}, "checkpoint": checkpoint, "precision": "fp32"}
    cfg.update(type="KDDetector", student=student.type, teacher=entry, distill=distill)
    model = build(cfg)
    if twins:
        model.load_state_dict(stock.state_dict())
    model.train()
    for module in model.modules():  # as in the teacher
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.Dropout)):
            module.eval()
    return model


def losses_of(model: Any, data: Any, seed: int = 0) -> dict[str, Any]:
    """The losses of a batch; the regions are drawn with this seed."""
    processed = model.data_preprocessor(copy.deepcopy(data), True)
    torch.manual_seed(seed)
    losses: dict[str, Any] = model.loss(processed["inputs"], processed["data_samples"])
    return losses
