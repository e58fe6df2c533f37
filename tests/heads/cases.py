"""The heads that are served, each by a stock config of mmdet made small."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import mmdet
import torch
from torch import Tensor

from mmkd.compat import load_config

from ..conftest import build

STOCK_CONFIGS = Path(mmdet.__file__).parent / ".mim/configs"
ITS_OWN = "its output"
PIXELS = "from its output"


@dataclass(frozen=True)
class Case:
    """What is said of a head.

    Attributes:
        head: its class.
        config: a stock config with it.
        logits: where the class logits come from.
        softmax: whether they are of a softmax with background, not of sigmoids.
        priors: base priors per position of each level.
        box: what its box output is.
        channels: of that, per prior.
        modes: whether its training and testing outputs differ.
        quality: its further outputs.
        labels: how it tells the class assigned to each prior; empty if it does not.
        trains: whether its loss can be run without a teacher of its own.
    """

    head: str
    config: str
    logits: str = ITS_OWN
    softmax: bool = False
    priors: tuple[int, ...] = (1,) * 5
    box: str = "offsets from the anchor"
    channels: int = 4
    modes: bool = False
    quality: tuple[str, ...] = ()
    labels: str = "class indices"
    trains: bool = True


DISTANCES = "distances from the point in pixels"
CASES = (
    Case("ATSSHead", "atss/atss_r50_fpn_1x_coco.py", quality=("centerness",)),
    Case("AutoAssignHead", "autoassign/autoassign_r50-caffe_fpn_1x_coco.py", box=DISTANCES,
         quality=("centerness",), labels=""),
    Case("CenterNetUpdateHead", "centernet/centernet-update_r18_fpn_8xb8-amp-lsj-200e_coco.py", box=DISTANCES,
         modes=True, labels=""),
    Case("DDODHead", "ddod/ddod_r50_fpn_1x_coco.py", quality=("iou",)),
    Case("FCOSHead", "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", box=DISTANCES, quality=("centerness",)),
    Case("FCOSHead, norm_on_bbox",
         "fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py", box=DISTANCES,
         modes=True, quality=("centerness",)),
    Case("FoveaHead", "foveabox/fovea_r50_fpn_4xb4-1x_coco.py",
         box="logarithms of distances from the point"),
    Case("FreeAnchorRetinaHead", "free_anchor/freeanchor_r50_fpn_1x_coco.py", priors=(9,) * 5, labels=""),
    Case("FSAFHead", "fsaf/fsaf_r50_fpn_1x_coco.py", box="distances from the anchor's center",
         labels="class indices, before it chooses among levels"),
    Case("GFLHead", "gfl/gfl_r50_fpn_1x_coco.py", box="distributions over distances", channels=68),
    Case("LDHead", "ld/ld_r18-gflv1-r101_fpn_1x_coco.py", box="distributions over distances", channels=68,
         labels="", trains=False),
    Case("PAAHead", "paa/paa_r50_fpn_1x_coco.py", quality=("iou",), labels="class indices, image by image"),
    Case("PISARetinaHead", "pisa/retinanet-r50_fpn_pisa_1x_coco.py", priors=(9,) * 5,
         labels="class indices, image by image"),
    Case("RepPointsHead", "reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py",
         box="corners from the point, in strides", modes=True),
    Case("RetinaHead", "retinanet/retinanet_r18_fpn_1x_coco.py", priors=(9,) * 5),
    Case("RTMDetSepBNHead", "rtmdet/rtmdet_tiny_8xb32-300e_coco.py", priors=(1,) * 3, box=DISTANCES),
    Case("SSDHead", "ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py", softmax=True, priors=(6,) * 6,
         labels=""),
    Case("TOODHead", "tood/tood_r50_fpn_1x_coco.py", logits="inverse sigmoid of its output",
         box="corners in strides"),
    Case("VFNetHead", "vfnet/vfnet_r50_fpn_1x_coco.py", box=DISTANCES + ", refined", modes=True,
         labels="IoU at the class"),
    Case("YOLOFHead", "yolof/yolof_r50-c5_8xb8-1x_coco.py", priors=(5,)),
    Case("YOLOV3Head", "yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py", logits="part of its output",
         priors=(3,) * 3, box="part of its output", quality=("objectness",), labels="one-hot"),
    Case("YOLOXHead", "yolox/yolox_tiny_8xb8-300e_coco.py", priors=(1,) * 3,
         box="center and log size in strides", quality=("objectness",),
         labels="IoU at the class, foreground alone, image by image"),
)  # fmt: skip


@lru_cache
def _loaded(name: str) -> Any:
    return load_config(STOCK_CONFIGS / name).model  # by its path: mmengine reads all metafiles for a name


def stock(name: str, *, deep: bool = False) -> Any:
    """A stock config of mmdet, with few channels and 3 classes; one layer per tower unless ``deep``."""
    cfg = copy.deepcopy(_loaded(name))
    cfg.data_preprocessor.pop("batch_augments", None)
    cfg.backbone.init_cfg = None
    cfg.bbox_head.num_classes = 3
    if cfg.backbone.type == "ResNet":
        cfg.backbone.update(depth=18, base_channels=8, frozen_stages=-1, norm_eval=False)
        cfg.backbone.update(style="pytorch", norm_cfg={"type": "BN"})
        cfg.backbone.pop("dcn", None)
        cfg.backbone.pop("stage_with_dcn", None)
        cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=64)
        cfg.bbox_head.in_channels = 64
    if cfg.neck.type == "DilatedEncoder":
        cfg.neck.update(in_channels=64, block_mid_channels=16)
    elif cfg.neck.type == "FPN":
        cfg.bbox_head.feat_channels = 64
    elif cfg.neck.type in ("YOLOXPAFPN", "CSPNeXtPAFPN"):
        for part in (cfg.backbone, cfg.neck, cfg.bbox_head):
            part.norm_cfg = {"type": "BN"}
        cfg.backbone.widen_factor = 0.125
        cfg.neck.update(in_channels=[32, 64, 128], out_channels=32)
        cfg.bbox_head.update(in_channels=32, feat_channels=32)
    if "stacked_convs" in cfg.bbox_head and not deep:
        cfg.bbox_head.stacked_convs = 1
    if cfg.bbox_head.type == "DDODHead":
        cfg.bbox_head.use_dcn = False  # mmcv's needs at least 3 × 3 positions, 384 pixels at stride 128
    if cfg.bbox_head.type == "RepPointsHead":
        cfg.bbox_head.point_feat_channels = 64
    if cfg.bbox_head.type == "LDHead":
        for key in [key for key in cfg if key.startswith("teacher") or key.endswith("_teacher")]:
            cfg.pop(key)
        cfg.type = "GFL"
    return cfg


@lru_cache
def built(case: Case) -> tuple[Any, list[Tensor]]:
    """A detector in eval mode whose head has opinions, and something to have opinions on."""
    model = build(stock(case.config)).eval()
    for parameter in model.bbox_head.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    with torch.no_grad():
        feats = [torch.randn_like(level) for level in model.extract_feat(torch.zeros(2, 3, 96, 128))]
    return model, feats


@contextmanager
def recorded(head: Any, names: tuple[str, ...]) -> Iterator[list[tuple[Any, ...]]]:
    """The positional arguments of each call of some of a head's loss modules."""
    calls: list[tuple[Any, ...]] = []
    losses = [getattr(head, name) for name in names if hasattr(head, name)]
    handles = [loss.register_forward_pre_hook(lambda _, args: calls.append(args)) for loss in losses]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
