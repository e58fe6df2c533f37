"""Runner hooks."""

from mmkd.hooks.channels_last import ChannelsLastHook
from mmkd.hooks.distill_monitor import DistillMonitorHook
from mmkd.hooks.distill_state import DistillStateHook
from mmkd.hooks.durable_checkpoint import DurableCheckpointHook
from mmkd.hooks.ema_teacher import EMATeacherHook
from mmkd.hooks.fresh_metrics import FreshMetricsHook
from mmkd.hooks.metrics_file import MetricsFileHook
from mmkd.hooks.pictures import PicturesHook
from mmkd.hooks.progress import ProgressHook
from mmkd.hooks.reproducible import ReproducibleHook
from mmkd.hooks.resume import ResumeHook
from mmkd.hooks.schedule import DistillScheduleHook
from mmkd.hooks.some_data import SomeDataHook
from mmkd.hooks.stop import StopHook, TrainingStopped
from mmkd.hooks.teacher_cache import TeacherCacheHook
from mmkd.hooks.teacher_views import TeacherViewsHook
from mmkd.hooks.train_only import TrainOnlyHook
from mmkd.hooks.wandb_sweep import WandbSweepHook

__all__ = [
    "ChannelsLastHook",
    "DistillMonitorHook",
    "DistillScheduleHook",
    "DistillStateHook",
    "DurableCheckpointHook",
    "EMATeacherHook",
    "FreshMetricsHook",
    "MetricsFileHook",
    "PicturesHook",
    "ProgressHook",
    "ReproducibleHook",
    "ResumeHook",
    "SomeDataHook",
    "StopHook",
    "TeacherCacheHook",
    "TeacherViewsHook",
    "TrainOnlyHook",
    "TrainingStopped",
    "WandbSweepHook",
]
