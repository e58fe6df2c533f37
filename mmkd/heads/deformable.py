"""Tensor requirements of mmcv's own layers."""

from __future__ import annotations

from mmcv.ops import (
    DeformConv2d,
    ModulatedDeformConv2d,
    MultiScaleDeformableAttention,
    SyncBatchNorm,
)
from mmdet.models.dense_heads import TOODHead
from torch import nn


def is_deformable(model: nn.Module) -> bool:
    """Whether the model has mmcv's deformable convolutions, as layers or called by its head (TOOD).

    They require input, offset and weight in torch's default memory format, and do not support bfloat16 on
    CPUs.
    """
    return any(
        isinstance(layer, (DeformConv2d, ModulatedDeformConv2d, TOODHead)) for layer in model.modules()
    )


def misreads_channels_last(model: nn.Module) -> bool:
    """Whether a layer assumes torch's default memory format for its input maps.

    mmcv's own code does, e.g. RoIAlign, and silently returns wrong numbers for channels-last maps. Its
    deformable attention receives rows, which have only one format.
    """
    return is_deformable(model) or any(
        type(layer).__module__.startswith("mmcv.ops.")
        and not isinstance(layer, (MultiScaleDeformableAttention, SyncBatchNorm))
        for layer in model.modules()
    )
