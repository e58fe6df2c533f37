"""Build a stock detector from config and checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import ConfigDict
from torch import nn

from mmkd.datasets import class_names
from mmkd.errors import UserError, type_of
from mmkd.heads import check_head_type
from mmkd.registry import MODELS, class_of
from mmkd.teachers.checkpoint import load_strictly


def leave_out_heads(model: Any) -> list[str]:
    """Remove everything after the neck; returns the removed names."""
    names = [name for name, _ in model.named_children() if name.endswith("_head")]
    for name in names:
        delattr(model, name)
    return names


def build_detector(
    model_cfg: ConfigDict, checkpoint: str | None, *, head: str | None = "bbox_head"
) -> tuple[Any, dict[str, Any]]:
    """Build a stock detector, load it strictly and freeze it.

    Args:
        model_cfg: the detector's model config.
        checkpoint: path or URL; ``None`` keeps random weights.
        head: the dense head that it must have, ``rpn_head`` for a two-stage student; ``None`` if only
            features are read.

    Returns:
        The detector in eval mode, on the CPU, and the checkpoint's ``meta``.

    Raises:
        UserError: it has no such head, or the checkpoint does not match.
    """
    if class_of(model_cfg) is None:
        raise UserError(
            "The teacher's detector is not registered.",
            expected="the name of a registered detector",
            found=type_of(model_cfg),
            remedy="correct the name, or add the module that registers it to custom_imports",
        )
    if head == "bbox_head":
        check_head_type(model_cfg, "teacher")
    # The student must train with the same random numbers as without a teacher.
    with torch.random.fork_rng(devices=[]):
        model = MODELS.build(model_cfg)
        if checkpoint is None:
            _fill_unset(model)
    if not hasattr(model, head or "extract_feat"):
        raise UserError(
            "The teacher has no dense head like the student's.",
            expected=f"a detector with backbone, neck and a dense {head}",
            found=type(model).__name__,
            remedy="choose a teacher of the student's kind (ATSS, RetinaNet, GFL, FCOS, … for a "
            "single-stage one), or feature losses (PKDLoss, CWDLoss, …), which work with any "
            "detector with a neck",
        )
    meta = {} if checkpoint is None else load_strictly(model, checkpoint)
    model.requires_grad_(False)
    model.eval()  # not chained: some detectors' own `train` returns None
    return model, meta


@torch.no_grad()
def _fill_unset(model: nn.Module) -> None:
    """Initialise weights that mmdet leaves as uninitialised memory, like SSD's `L2Norm`."""
    for parameter in model.parameters():
        if not parameter.abs().max() < 1e3:
            nn.init.normal_(parameter, std=0.02)


def class_names_of(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names from an mmengine (``dataset_meta``) or mmcv 1.x checkpoint."""
    return class_names(meta.get("dataset_meta")) or class_names(meta)
