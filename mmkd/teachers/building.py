"""A stock detector from its config and checkpoint, and what it tells of itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from torch import Tensor

from mmkd.datasets import class_names
from mmkd.errors import UserError, type_of
from mmkd.heads import adapter_for, check_head_type, is_deformable
from mmkd.registry import MODELS, class_of
from mmkd.structures import HeadSpec
from mmkd.teachers.checkpoint import load_strictly

# SSD300 needs the second, a deformable convolution at stride 128 the third.
_SIDES = (128, 320, 384, 640, 1024)


@torch.no_grad()
def example_pixels(model: Any, run: Callable[[Tensor], Any]) -> Tensor:
    """The smallest image, 1×C×side×side, that a detector runs on; it stays on the image's device.

    Args:
        model: in eval mode, on the CPU.
        run: its forward, as far as it is used.

    Raises:
        UserError: it runs on none.
    """
    first: Exception | None = None
    sides = _SIDES[2:] if is_deformable(model) else _SIDES
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]  # CARAFE has no code for CPUs
    for device, side, channels in itertools.product(devices, sides, _input_widths(model)):
        pixels = torch.linspace(-2, 2, channels * side * side).reshape(1, channels, side, side).to(device)
        try:
            model.to(device)
            run(pixels)
        except Exception as error:  # mmcv's and mmdet's layers fail in ways of their own
            first = first or error
            continue
        if first is not None:
            print_log(f"the teacher is tried with images of {channels}×{side}×{side} on {device}", "current")
        return pixels
    raise UserError(
        "The teacher does not run.",
        expected=f"its forward to accept a square image of {_SIDES[0]} to {_SIDES[-1]} pixels",
        found=f"{type(first).__name__}: {first}",
        remedy="check the teacher's config: try it with mmdet's tools/test.py",
    ) from first


def _input_widths(model: Any) -> list[int]:
    """How many channels its images may have; YOLOX's first layer takes four pixels as channels."""
    kernels = (p for p in model.backbone.parameters() if p.dim() == 4) if hasattr(model, "backbone") else ()
    first = next((kernel.shape[1] for kernel in kernels), 3)
    return list(dict.fromkeys([3, first, max(first // 4, 1)]))


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
def layout_of_features(model: Any, pixels: Tensor) -> HeadSpec:
    """What a detector of any kind tells by its neck about an image: levels, strides and widths."""
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
    if class_of(model_cfg) is None:
        raise UserError(
            "The teacher's detector is not registered.",
            expected="the name of a registered detector",
            found=type_of(model_cfg),
            remedy="correct the name, or list the module that registers it under custom_imports",
        )
    if dense:
        check_head_type(model_cfg, "teacher")
    # The student trains with the random numbers that it would have had alone.
    with torch.random.fork_rng(devices=[]):
        model = MODELS.build(model_cfg)
    if not hasattr(model, "bbox_head" if dense else "extract_feat"):
        raise UserError(
            "The teacher is no single-stage detector.",
            expected="a detector with backbone, neck and a dense bbox_head",
            found=type(model).__name__,
            remedy="choose a teacher of a single-stage kind (ATSS, RetinaNet, GFL, FCOS, …), "
            "or losses on features alone (PKDLoss, CWDLoss, …), which fit any detector with a neck",
        )
    meta = {} if checkpoint is None else load_strictly(model, checkpoint)
    model.requires_grad_(False)
    model.eval()  # whose result is None where a detector has a `train` of its own
    return model, meta


def class_names_of(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names as mmengine 1.x-style (``dataset_meta``) or mmcv 1.x wrote them."""
    return class_names(meta.get("dataset_meta")) or class_names(meta)
