"""Which losses the heads that are served have all for, told without training."""

from __future__ import annotations

from typing import Any

import torch

from mmkd.errors import UserError
from mmkd.heads import adapter_for, check_heads
from mmkd.heads.towers import check_towers, record_towers
from mmkd.losses import DistillLoss, build_losses
from mmkd.outputs.example import example_pixels
from mmkd.outputs.features import layout_of_features
from mmkd.registry import MODELS

from .cases import Case, built, stock

# The arguments that have no default.
ARGUMENTS: dict[str, Any] = {"CrossKDLoss": {"losses": {"box": {"type": "BoxIoULoss"}}}}


def term(loss: str) -> dict[str, Any]:
    """The config of a loss with its default options."""
    return {"type": loss, **ARGUMENTS.get(loss, {})}


def lacks(case: Case, loss: str) -> str:
    """What student and teacher with this head lack for a loss; empty if nothing."""
    (built_term,) = build_losses({loss: term(loss)}, "distill").values()
    assert isinstance(built_term, DistillLoss)
    model, _ = built(case)
    spec = adapter_for(model.bbox_head).spec(model.bbox_head)
    needs = built_term.needs
    try:
        built_term.check(spec, spec)
        if needs <= {"feats"}:  # of such a teacher the neck alone is asked
            check_heads(spec, layout_of_features(model, example_pixels(model, model.extract_feat)), needs)
    except UserError as error:
        return str(error).splitlines()[0]
    if "labels" in needs and not case.labels:
        return "assigned classes"
    if "extra" in needs and not case.quality:
        return "a quality output"
    if "bbox_pred" in needs and case.channels == 4:  # the losses that read boxes as they come want these
        return "distributions for boxes"
    if "detections" in needs and getattr(model.bbox_head, "loss_cls", None) is None:
        return "predictions: mmdet 3.3 cannot predict by it"
    if "towers" in needs and not has_towers(case, built_term.tower_layers):
        return "towers that all levels share"
    return ""


def has_towers(case: Case, layer: int) -> bool:
    """Whether a head can be crossed after so many layers, at the depth of the stock config."""
    cfg = stock(case.config, deep=True)
    head = MODELS.build({**cfg.bbox_head, "train_cfg": cfg.get("train_cfg"), "test_cfg": cfg.get("test_cfg")})
    _, feats = built(case)
    try:
        check_towers(head, layer, "student")
    except UserError:
        return False
    with torch.no_grad(), record_towers(head) as towers:
        head.eval()(tuple(feats))
    return all(len(levels) == len(feats) for layers in towers.values() for levels in layers)
