"""Adapters from mmdet's dense heads to `DenseOutputs`."""

from mmkd.heads.adapter import ADAPTERS, DenseHeadAdapter, adapter_for, register_adapter
from mmkd.heads.compatibility import check_heads

__all__ = ["ADAPTERS", "DenseHeadAdapter", "adapter_for", "check_heads", "register_adapter"]
