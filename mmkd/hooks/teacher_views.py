"""Make the pipeline record its geometric transforms for the teacher."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmkd.data import TracedPipeline
from mmkd.errors import UserError
from mmkd.registry import HOOKS
from mmkd.teachers import PredictionsTeacher, single_teachers
from mmkd.teachers.pipeline import base_datasets


@HOOKS.register_module()
class TeacherViewsHook(Hook):
    """Check that a teacher's predictions cover the training images and can follow the pipeline.

    Needed with ``teacher=dict(predictions=…)``; mmkd's train tool adds it. Without such a teacher it does
    nothing.

    Raises:
        UserError: a transform moves images in an unknown way, or the predictions belong to other images;
            before the first step.
    """

    priority = "VERY_LOW"  # after the hooks that replace the pipeline

    def before_train(self, runner: Runner) -> None:
        """Compare the images, and trace the pipeline."""
        for teacher in teachers_with_views(runner.model):
            teacher.check_images(training_images(runner.train_dataloader.dataset))
        self._trace(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Trace it again: it may have been replaced."""
        self._trace(runner)

    def _trace(self, runner: Runner) -> None:
        if teachers_with_views(runner.model):
            trace(runner.train_dataloader.dataset)


def teachers_with_views(model: Any) -> list[PredictionsTeacher]:
    """The teachers of a model, which may be wrapped, whose boxes belong to image files."""
    model = model.module if is_model_wrapper(model) else model
    inner = [getattr(one, "inner", one) for one in single_teachers(getattr(model, "teacher", None))]
    return [one for one in inner if isinstance(one, PredictionsTeacher)]


def trace(dataset: Any) -> None:
    """Make the pipelines below a data set write ``view`` into the metadata of their samples.

    Raises:
        UserError: a transform moves images in an unknown way.
    """
    for base in base_datasets(dataset, _refused):
        if not isinstance(base.pipeline, TracedPipeline):
            base.pipeline = TracedPipeline(base.pipeline.transforms)


def training_images(dataset: Any) -> list[tuple[str, Any]]:
    """Path and id of each image below a data set."""
    infos = (base.get_data_info(i) for base in base_datasets(dataset, _refused) for i in range(len(base)))
    return [(str(info["img_path"]), info.get("img_id")) for info in infos]


def _refused(name: str, why: str) -> UserError:
    return UserError(
        f"The teacher's boxes cannot follow {name}: {why}.",
        expected="single images, alone or in ConcatDataset, RepeatDataset or ClassBalancedDataset",
        found=name,
        remedy=f"remove {name}; use RandomAffine and RandomCrop for scale and position",
    )
