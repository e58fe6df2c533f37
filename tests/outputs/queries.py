"""Small detectors with queries, of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict

from ..conftest import build
from ..detectors.test_kd_detector import _zoo as zoo
from ..detectors.test_kd_detector import distilled, small, twin

FAMILIES = {
    "DETR": "detr/detr_r50_8xb2-150e_coco.py",
    "ConditionalDETR": "conditional_detr/conditional-detr_r50_8xb2-50e_coco.py",
    "DABDETR": "dab_detr/dab-detr_r50_8xb2-50e_coco.py",
    "DeformableDETR": "deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py",
    "DeformableDETR, two-stage": "deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py",
    "DINO": "dino/dino-4scale_r50_8xb2-12e_coco.py",
    "DDQDETR": "ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py",
    "SparseRCNN": "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py",
    "QueryInst": "queryinst/queryinst_r50_fpn_1x_coco.py",
    "MaskFormer": "maskformer/maskformer_r50_ms-16xb1-75e_coco.py",
    "Mask2Former": "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
}
OF_STAGES = ("SparseRCNN", "QueryInst")
OF_MASKS = ("MaskFormer", "Mask2Former")
SOFTMAX = ("DETR", "MaskFormer", "Mask2Former")
QUERIES, LAYERS = 10, 2


def tiny(family: str, queries: int = QUERIES, layers: int = LAYERS, classes: int = 3) -> ConfigDict:
    """One of `FAMILIES` with few queries, layers and classes, narrow and without dropout.

    Boxes alone decide who faces whom, so that a query's best partner is one that says the same.
    """
    if family in OF_MASKS:
        return _with_masks(FAMILIES[family], queries, layers, classes)
    cfg = small(FAMILIES[family])
    if family in OF_STAGES:
        return _with_stages(cfg, queries, layers, classes)
    cfg.num_queries, cfg.bbox_head.num_classes = queries, classes
    cfg.train_cfg.assigner.match_costs[0].weight = 0.0
    for part in (cfg.encoder, cfg.decoder):
        part.num_layers = layers
        _shrink(part)
    return cfg


def _with_stages(cfg: ConfigDict, queries: int, stages: int, classes: int) -> ConfigDict:
    head = cfg.roi_head
    cfg.neck.out_channels = 32
    for one in (cfg.rpn_head, head):
        _narrow(one)
    head.num_stages, head.stage_loss_weights = stages, [1] * stages
    cfg.rpn_head.num_proposals, cfg.test_cfg.rcnn.max_per_img = queries, queries
    for heads in (head.bbox_head, head.get("mask_head") or []):
        del heads[stages:]
        for one in heads:
            one.num_classes = classes
            _shrink(one)
    del cfg.train_cfg.rcnn[stages:]
    for stage in cfg.train_cfg.rcnn:
        stage.assigner.match_costs[0].weight = 0.0
    return cfg


def _with_masks(name: str, queries: int, layers: int, classes: int) -> ConfigDict:
    cfg = Config.fromfile(f"{zoo()}/{name}").model
    cfg.backbone.update(depth=18, base_channels=8, init_cfg=None)
    cfg.data_preprocessor.batch_augments = None
    head = cfg.panoptic_head
    head.update(in_channels=[8, 16, 32, 64], num_queries=queries)
    for part in (head, cfg.panoptic_fusion_head):
        part.update(num_things_classes=classes, num_stuff_classes=0)
    head.loss_cls.class_weight = [1.0] * classes + [0.1]
    head.transformer_decoder.num_layers, head.pixel_decoder.encoder.num_layers = layers, 1
    _shrink(head)
    cfg.train_cfg.assigner.match_costs[0].weight = 0.0
    cfg.train_cfg.num_points = 256
    return cfg


def _narrow(cfg: Any) -> None:
    for key, value in cfg.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                _narrow(one)
        if isinstance(value, int) and "channel" in key:
            cfg[key] = 32 if value == 256 else 8


def _shrink(cfg: Any) -> None:
    for key, value in cfg.items():
        if isinstance(value, dict):
            _shrink(value)
        elif "drop" in key:
            cfg[key] = 0.0
        elif key == "feedforward_channels":
            cfg[key] = 32


def opinionated(path: Path, cfg: ConfigDict, **meta: Any) -> str:
    """Write the checkpoint of a random teacher whose queries differ in class and box."""
    model = build(cfg, seed=1)
    unsettle(model)
    torch.save({"meta": meta, "state_dict": model.state_dict()}, path)
    return str(path)


def last_part(family: str) -> int:
    """The number of the last layer; Mask2Former predicts before its first one too."""
    return LAYERS - (family != "Mask2Former")


def unsettle(model: Any) -> None:
    """Change the last layers of its classes and boxes, which begin with zeros."""
    for name, parameter in parts(model)["bbox_head"].named_parameters():
        if "cls" in name or "reg" in name or "mask_embed" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)


def twins(cfg: ConfigDict, folder: Path, **losses: Any) -> Any:
    """A student whose teacher has its weights; BatchNorm and the dropout of deformable attention rest."""
    checkpoint = opinionated(folder / "teacher.pth", cfg)
    model = twin(distilled(cfg, checkpoint, distill=losses), checkpoint)
    for module in model.modules():
        if isinstance(module, (torch.nn.modules.batchnorm._BatchNorm, torch.nn.Dropout)):
            module.eval()
    return model


def parts(model: Any) -> dict[str, Any]:
    """The modules that its queries pass, the one that makes them predictions among them."""
    if hasattr(model, "panoptic_head"):
        return {"backbone": model.backbone.layer4, "bbox_head": model.panoptic_head}
    if hasattr(model, "roi_head"):
        return {"backbone": model.backbone.layer4, "neck": model.neck, "bbox_head": model.roi_head.bbox_head}
    names = ("encoder", "decoder", "bbox_head")
    return {"backbone": model.backbone.layer4, **{name: getattr(model, name) for name in names}}


def batch() -> Any:
    """Two images of different sizes, with boxes and masks."""
    return demo_mm_inputs(2, [[3, 96, 128], [3, 80, 96]], num_classes=3, with_mask=True)


def losses_of(model: Any, data: Any = None) -> dict[str, torch.Tensor]:
    """The distillation losses of a batch by name."""
    data = model.data_preprocessor(batch() if data is None else data, True)
    found = model.loss(data["inputs"], data["data_samples"])
    return {name[8:]: value for name, value in found.items() if name.startswith("loss_kd_")}
