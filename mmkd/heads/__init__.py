"""Adapters from mmdet's dense heads to `DenseOutputs`."""

from mmkd.heads import anchors, points, yolo  # noqa: F401  (they register their adapters)
from mmkd.heads.adapter import ADAPTERS, DenseHeadAdapter, adapter_for, check_head_type, register_adapter
from mmkd.heads.compatibility import check_heads, levels_by_stride
from mmkd.heads.deformable import is_deformable, misreads_channels_last

__all__ = [
    "ADAPTERS",
    "DenseHeadAdapter",
    "adapter_for",
    "check_head_type",
    "check_heads",
    "is_deformable",
    "levels_by_stride",
    "misreads_channels_last",
    "register_adapter",
]
