"""Channels-last convolutions, the memory format of tensor cores and AMX."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmkd.heads import misreads_channels_last
from mmkd.registry import HOOKS


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Train the detector in torch's channels-last memory format.

    This helps in mixed precision, where convolutions then need no conversion; results differ by rounding, and
    checkpoints stay compatible. Detectors with mmcv layers that only support torch's default format
    (RoIAlign, deformable convolutions) are not converted, and the log says so. See torch's
    `channels-last tutorial <https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html>`_.
    """

    def before_train(self, runner: Runner) -> None:
        """Convert the weights; activations follow them."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if misreads_channels_last(model):
            runner.logger.warning(
                "ChannelsLastHook: RoIAlign and deformable convolutions do not support "
                "channels-last; model unchanged"
            )
            return
        model.to(memory_format=torch.channels_last)
