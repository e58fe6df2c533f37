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
    """Whether mmcv's deformable convolutions are among a model's layers, or its head (TOOD) calls them.

    They need input, offset and weight in torch's default memory format, and on a CPU have no bfloat16.
    """
    return any(
        isinstance(layer, (DeformConv2d, ModulatedDeformConv2d, TOODHead)) for layer in model.modules()
    )


def misreads_channels_last(model: nn.Module) -> bool:
    """Whether a layer takes maps to be in torch's default memory format, whatever they are in.

    mmcv's own code does, RoIAlign for one, and gives wrong numbers without a word for channels-last maps. Its
    deformable attention is given rows, which have one format.
    """
    return is_deformable(model) or any(
        type(layer).__module__.startswith("mmcv.ops.")
        and not isinstance(layer, (MultiScaleDeformableAttention, SyncBatchNorm))
        for layer in model.modules()
    )
