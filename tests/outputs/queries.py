"""Small detectors with queries, of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict

from ..conftest import build
from ..detectors.test_kd_detector import batch, distilled, small, twin

FAMILIES = {
    "DETR": "detr/detr_r50_8xb2-150e_coco.py",
    "ConditionalDETR": "conditional_detr/conditional-detr_r50_8xb2-50e_coco.py",
    "DABDETR": "dab_detr/dab-detr_r50_8xb2-50e_coco.py",
    "DeformableDETR": "deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py",
    "DeformableDETR, two-stage": "deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py",
    "DINO": "dino/dino-4scale_r50_8xb2-12e_coco.py",
    "DDQDETR": "ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py",
}
SOFTMAX = ("DETR",)
QUERIES, LAYERS = 10, 2


def tiny(family: str, queries: int = QUERIES, layers: int = LAYERS, classes: int = 3) -> ConfigDict:
    """One of `FAMILIES` with few queries, layers and classes, narrow and without dropout.

    Boxes alone decide who faces whom, so that a query's best partner is one that says the same.
    """
    cfg = small(FAMILIES[family])
    cfg.num_queries, cfg.bbox_head.num_classes = queries, classes
    cfg.train_cfg.assigner.match_costs[0].weight = 0.0
    for part in (cfg.encoder, cfg.decoder):
        part.num_layers = layers
        _shrink(part)
    return cfg


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
    with torch.no_grad():
        for parameter in model.bbox_head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    torch.save({"meta": meta, "state_dict": model.state_dict()}, path)
    return str(path)


def twins(cfg: ConfigDict, folder: Path, **losses: Any) -> Any:
    """A student whose teacher has its weights; BatchNorm and the dropout of deformable attention rest."""
    checkpoint = opinionated(folder / "teacher.pth", cfg)
    model = twin(distilled(cfg, checkpoint, distill=losses), checkpoint)
    for module in model.modules():
        if isinstance(module, (torch.nn.modules.batchnorm._BatchNorm, torch.nn.Dropout)):
            module.eval()
    return model


def losses_of(model: Any, data: Any = None) -> dict[str, torch.Tensor]:
    """The distillation losses of a batch by name."""
    data = model.data_preprocessor(batch() if data is None else data, True)
    found = model.loss(data["inputs"], data["data_samples"])
    return {name[8:]: value for name, value in found.items() if name.startswith("loss_kd_")}
