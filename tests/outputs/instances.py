"""One-stage detectors of mmdet's zoo that find masks, made small."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.logging import MessageHub
from torch.nn.modules.batchnorm import _BatchNorm

from mmkd.compat import load_config

from .. import zoo
from ..conftest import build
from ..detectors.test_kd_detector import distilled, twin

OF_GRIDS = {
    "SOLO": "solo/solo_r18_fpn_8xb8-lsj-200e_coco.py",
    "DecoupledSOLO": "solo/decoupled-solo_r50_fpn_1x_coco.py",
    "DecoupledSOLO, light": "solo/decoupled-solo-light_r50_fpn_3x_coco.py",
    "SOLOv2": "solov2/solov2-light_r18_fpn_ms-3x_coco.py",
}
DENSE = {
    "CondInst": "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py",
    "BoxInst": "boxinst/boxinst_r50_fpn_ms-90k_coco.py",
    "YOLACT": "yolact/yolact_r50_1xb8-55e_coco.py",
    "RTMDet-Ins": "rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py",
}
FAMILIES = {**OF_GRIDS, **DENSE}
_WIDTHS = {"in_channels", "out_channels", "feat_channels"}


@lru_cache
def _loaded(name: str) -> Any:
    return load_config(zoo.CONFIGS / name).model


def tiny(family: str, classes: int = 3) -> Any:
    """One of `FAMILIES`, narrow, with few classes and cells."""
    cfg = zoo.small(copy.deepcopy(_loaded(FAMILIES[family])))
    cfg.data_preprocessor.pop("batch_augments", None)
    if cfg.backbone.type == "ResNet":
        cfg.backbone.update(depth=18, base_channels=8)
        _narrow(cfg)
        cfg.neck.in_channels = [8, 16, 32, 64]
    else:
        cfg.backbone.widen_factor = 0.125
        cfg.neck.update(in_channels=[32, 64, 128], out_channels=32)
        cfg.bbox_head.update(in_channels=32, feat_channels=32)
    for head in (cfg.get("bbox_head"), cfg.get("mask_head")):
        if head and "num_classes" in head:
            head.num_classes = classes
        if head and "stacked_convs" in head:
            head.stacked_convs = 1
        if head and "num_grids" in head:
            head.num_grids = [10, 9, 6, 4, 3]
    return cfg


def _narrow(cfg: Any) -> None:
    for key, value in cfg.items():
        if isinstance(value, dict):
            _narrow(value)
        elif key in _WIDTHS and value in (128, 256):
            cfg[key] = 64  # by the 32 groups of GroupNorm more than one value each


def batch(side: int = 128, *, one_size: bool = True) -> Any:
    """Two images with boxes and masks; YOLACT takes them of one size alone."""
    cfg = tiny("CondInst")
    data = zoo.batch(cfg, side)
    if not one_size:
        data = demo_mm_inputs(
            2, [[3, side, side], [3, side - 32, side - 64]], num_items=[3, 2], num_classes=3, with_mask=True
        )
    return data


def opinionated(path: Path, cfg: Any, **meta: Any) -> str:
    """Write the checkpoint of a random teacher whose classes and masks differ from place to place."""
    model = build(cfg, seed=1)
    unsettle(model)
    torch.save({"meta": meta, "state_dict": model.state_dict()}, path)
    return str(path)


def unsettle(model: Any) -> None:
    """Change the heads."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "_head." in name and not name.startswith("teacher"):
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def twins(cfg: Any, folder: Path, **losses: Any) -> Any:
    """A student whose teacher has its weights; BatchNorm rests."""
    checkpoint = opinionated(folder / "teacher.pth", cfg)
    model = twin(distilled(cfg, checkpoint, distill=losses), checkpoint)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return model


def losses_of(model: Any, data: Any = None) -> dict[str, torch.Tensor]:
    """The losses of a batch by name."""
    MessageHub.get_current_instance().update_info("iter", 0)  # BoxInst reads it
    data = model.data_preprocessor(batch() if data is None else data, True)
    found: dict[str, torch.Tensor] = model.loss(data["inputs"], data["data_samples"])
    return found
