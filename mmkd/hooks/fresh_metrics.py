"""Remove metrics of earlier validations from the log."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmkd.registry import HOOKS


@HOOKS.register_module()
class FreshMetricsHook(Hook):
    """Drop metrics of earlier validations that the current one does not compute.

    mmengine (0.10) logs the newest value of each metric. If nothing was detected, mmdet computes no metric,
    and mmengine logs the value of an earlier validation.
    """

    priority = "NORMAL"  # before LoggerHook

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Remove them from mmengine's message hub."""
        logged = runner.message_hub.log_scalars
        for key in [key for key in logged if key.startswith("val/")]:
            name = key.removeprefix("val/")
            if "/" in name and name not in (metrics or {}):  # evaluators use a prefix, times do not
                logged.pop(key)
