"""Adapters from mmdet's dense heads to `DenseOutputs`."""

from mmkd.heads.adapter import ADAPTERS, DenseHeadAdapter, adapter_for, check_head_type, register_adapter
from mmkd.heads.compatibility import check_heads

__all__ = [
    "ADAPTERS",
    "DenseHeadAdapter",
    "adapter_for",
    "check_head_type",
    "check_heads",
    "register_adapter",
]
