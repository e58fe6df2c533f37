"""Runner hooks."""

from mmkd.hooks.fresh_metrics import FreshMetricsHook
from mmkd.hooks.metrics_file import MetricsFileHook
from mmkd.hooks.progress import ProgressHook
from mmkd.hooks.stop import StopHook, TrainingStopped
from mmkd.hooks.teacher_cache import TeacherCacheHook
from mmkd.hooks.wandb_sweep import WandbSweepHook

__all__ = [
    "FreshMetricsHook",
    "MetricsFileHook",
    "ProgressHook",
    "StopHook",
    "TeacherCacheHook",
    "TrainingStopped",
    "WandbSweepHook",
]
