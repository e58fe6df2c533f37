"""Whether a detector computes deformable convolutions."""

from __future__ import annotations

from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmdet.models.dense_heads import TOODHead
from torch import nn


def is_deformable(model: nn.Module) -> bool:
    """Whether mmcv's deformable convolutions are among a model's layers, or its head (TOOD) calls them.

    They need input, offset and weight in torch's default memory format, and on a CPU have no bfloat16.
    """
    return any(
        isinstance(layer, (DeformConv2d, ModulatedDeformConv2d, TOODHead)) for layer in model.modules()
    )
