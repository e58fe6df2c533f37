"""Checks that the built data set has something to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmkd.data import UnlabelledImages
from mmkd.errors import UserError
from mmkd.registry import HOOKS


@HOOKS.register_module()
class SomeDataHook(Hook):
    """Stop if the training data set is empty, or has no objects although the task losses need them.

    A filter may have removed all images, and files other than COCO's are only read by their data set. Images
    without labels need no object, but a student with a teacher.

    Raises:
        UserError: before the first step, if there is nothing to learn from.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        """Check the built data set, up to its first object."""
        dataset = runner.train_dataloader.dataset
        if not hasattr(dataset, "__len__"):
            return
        name, remedy = type(dataset).__name__, "check its ann_file, metainfo.classes and filter_cfg"
        if len(dataset) == 0:
            raise UserError(
                "The training data set is empty.",
                expected="at least one image after filtering",
                found=f"{name} with 0 images",
                remedy=remedy,
            )
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        parts = list(_innermost(dataset))
        unlabelled = [isinstance(part, UnlabelledImages) for part in parts]
        if any(unlabelled) and not hasattr(model, "pseudo_score"):
            raise UserError(
                "Unlabelled images without a teacher would be trained as background.",
                expected="a student with a teacher (KDDetector, KDSingleStageDetector) for UnlabelledImages",
                found=type(model).__name__,
                remedy="add a teacher (--teacher CONFIG --teacher-checkpoint FILE), or remove them from "
                "train_dataloader.dataset",
            )
        labelled = [part for part, without in zip(parts, unlabelled) if not without]
        told = all(hasattr(part, "get_data_info") for part in labelled)
        if not (labelled and told) or getattr(model, "task_loss_weight", 1) == 0:
            return
        infos = (part.get_data_info(index) for part in labelled for index in range(len(part)))
        if not any(info.get("instances", True) for info in infos):
            raise UserError(
                "The training data set has no objects.",
                expected="at least one box of the configured classes",
                found=f"{name} with {sum(map(len, labelled))} images without boxes",
                remedy=f"{remedy}; model.task_loss_weight=0 distils without labels",
            )


def _innermost(dataset: Any) -> Iterator[Any]:
    """The data sets below wrappers, as built."""
    inner = getattr(dataset, "dataset", None)
    for part in [inner] if inner is not None else getattr(dataset, "datasets", ()):
        yield from _innermost(part)
    if inner is None and not hasattr(dataset, "datasets"):
        yield dataset
