"""A stock detector from its config and checkpoint, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from mmengine.config import ConfigDict
from torch import Tensor

from mmkd.errors import UserError, user_error
from mmkd.heads import adapter_for, check_head_type, is_deformable
from mmkd.registry import MODELS
from mmkd.structures import HeadSpec
from mmkd.teachers.checkpoint import load_strictly


def example_pixels(model: Any) -> Tensor:
    """An image to try a detector with."""
    # A deformable convolution needs three by three positions on the coarsest level.
    side = 384 if is_deformable(model) else 128
    return torch.linspace(-2, 2, 3 * side * side).reshape(1, 3, side, side)


def check_levels(levels: Any) -> tuple[int, ...] | None:
    """``teacher.levels``: for each level of the student the index of the teacher's.

    Raises:
        UserError: it is no list of whole numbers.
    """
    if levels is None:
        return None
    if not (isinstance(levels, (list, tuple)) and levels and all(isinstance(i, int) for i in levels)):
        raise UserError(
            "teacher.levels must be the teacher's level for each of the student's, like [1, 2, 3], "
            f"found {levels!r}"
        )
    return tuple(levels)


@torch.no_grad()
def layout_of_features(model: Any) -> HeadSpec:
    """What a detector of any kind tells by its neck: levels, strides and widths."""
    pixels = example_pixels(model)
    feats = model.extract_feat(pixels)
    strides = tuple((round(pixels.shape[-1] / feat.shape[-1]),) * 2 for feat in feats)
    # Where a dense head says what they are, that is what the student's says as well (SSD's are not round).
    with suppress(UserError, AttributeError):
        strides = adapter_for(model.bbox_head).spec(model.bbox_head).strides
    return HeadSpec(
        num_classes=0,
        cls_channels=0,
        use_sigmoid=True,
        strides=strides,
        num_base_priors=(0,) * len(feats),
        in_channels=tuple(feat.shape[1] for feat in feats),
    )


def leave_out_heads(model: Any) -> list[str]:
    """Drop what comes after the neck; returns its names."""
    names = [name for name, _ in model.named_children() if name.endswith("_head")]
    for name in names:
        delattr(model, name)
    return names


def build_detector(
    model_cfg: ConfigDict, checkpoint: str | None, *, dense: bool = True
) -> tuple[Any, dict[str, Any]]:
    """Build a stock detector, load it strictly and freeze it.

    Args:
        model_cfg: its model config.
        checkpoint: path or URL; ``None`` leaves it random.
        dense: it must have a dense head; else one with a neck will do, like a two-stage detector.

    Returns:
        The detector in eval mode, on the CPU, and the checkpoint's ``meta``.

    Raises:
        UserError: it is no single-stage detector, or the checkpoint does not fit.
    """
    if MODELS.get(model_cfg.type) is None:
        raise user_error(
            "The teacher's detector is not registered.",
            expected="the name of a registered detector",
            found=str(model_cfg.type),
            remedy="correct the name, or list the module that registers it under custom_imports",
        )
    if dense:
        check_head_type(model_cfg, "teacher")
    # The student trains with the random numbers that it would have had alone.
    with torch.random.fork_rng(devices=[]):
        model = MODELS.build(model_cfg)
    if not hasattr(model, "bbox_head" if dense else "extract_feat"):
        raise user_error(
            "The teacher is no single-stage detector.",
            expected="a detector with backbone, neck and a dense bbox_head",
            found=type(model).__name__,
            remedy="choose a teacher of a single-stage kind (ATSS, RetinaNet, GFL, FCOS, …), "
            "or losses on features alone (PKDLoss, CWDLoss, …), which fit any detector with a neck",
        )
    meta = {} if checkpoint is None else load_strictly(model, checkpoint)
    return model.requires_grad_(False).eval(), meta


def class_names_of(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names as mmengine 1.x-style (``dataset_meta``) or mmcv 1.x wrote them."""
    dataset_meta = meta.get("dataset_meta") or {}
    names = dataset_meta.get("classes") or dataset_meta.get("CLASSES") or meta.get("CLASSES")
    return None if names is None else tuple(names)
