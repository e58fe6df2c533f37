"""Runner hooks."""

from mmkd.hooks.metrics_file import MetricsFileHook
from mmkd.hooks.progress import ProgressHook

__all__ = ["MetricsFileHook", "ProgressHook"]
