"""Runner hooks."""

from mmkd.hooks.fresh_metrics import FreshMetricsHook
from mmkd.hooks.metrics_file import MetricsFileHook
from mmkd.hooks.progress import ProgressHook
from mmkd.hooks.stop import StopHook, TrainingStopped
from mmkd.hooks.wandb_sweep import WandbSweepHook

__all__ = [
    "FreshMetricsHook",
    "MetricsFileHook",
    "ProgressHook",
    "StopHook",
    "TrainingStopped",
    "WandbSweepHook",
]
