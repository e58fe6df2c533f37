"""A data set that has something to learn from, asked when it is built and before the first step."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmkd.errors import UserError
from mmkd.registry import HOOKS


@HOOKS.register_module()
class SomeDataHook(Hook):
    """Stop a training whose data set is empty, or has no object where the task's losses need one.

    A filter may have left out all images, and files other than COCO's are read by their data set alone.

    Raises:
        UserError: before the first step.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        """Look at the built data set, up to its first object."""
        dataset = runner.train_dataloader.dataset
        if not hasattr(dataset, "__len__"):
            return
        name, remedy = type(dataset).__name__, "check its ann_file, metainfo.classes and filter_cfg"
        if len(dataset) == 0:
            raise UserError(
                "The training data set is empty.",
                expected="at least one image after its filter",
                found=f"{name} of 0 images",
                remedy=remedy,
            )
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not hasattr(dataset, "get_data_info") or getattr(model, "task_loss_weight", 1) == 0:
            return
        infos = (dataset.get_data_info(index) for index in range(len(dataset)))
        if not any(info.get("instances", True) for info in infos):
            raise UserError(
                "The training data set has no object.",
                expected="at least one box of the configured classes",
                found=f"{name} of {len(dataset)} images without a box",
                remedy=f"{remedy}; model.task_loss_weight=0 distils without labels",
            )
