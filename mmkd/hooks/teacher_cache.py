"""Pass the training pipeline to the teacher cache."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmkd.registry import HOOKS
from mmkd.teachers.cached import CachedTeacher
from mmkd.teachers.pipeline import recipe_of
from mmkd.teachers.several import single_teachers


@HOOKS.register_module()
class TeacherCacheHook(Hook):
    """Check that the training pipeline can be cached, and log what was read and computed.

    Needed with ``teacher=dict(…, cache=dict(…))``; mmkd's train tool adds it. Without a cache it does
    nothing.

    Raises:
        UserError: a transform has no exact key; before the first step.
    """

    priority = "VERY_LOW"  # after the hooks that replace the pipeline

    def __init__(self) -> None:
        self._said: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Read the pipeline."""
        self._read_pipeline(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Read it again: it may have been replaced."""
        self._read_pipeline(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Log the state of the cache."""
        self._log(runner)

    def after_train(self, runner: Runner) -> None:
        """Log the state once more, for loops without epochs."""
        self._log(runner)

    def _read_pipeline(self, runner: Runner) -> None:
        for teacher in cached_teachers(runner.model):
            teacher.for_pipeline(recipe_of(runner.train_dataloader.dataset))

    def _log(self, runner: Runner) -> None:
        for summary in [teacher.summary() for teacher in cached_teachers(runner.model)]:
            if summary not in self._said:
                self._said.add(summary)
                runner.logger.info(summary)


def cached_teachers(model: Any) -> list[CachedTeacher]:
    """The cached teachers of a model, which may be wrapped."""
    model = model.module if is_model_wrapper(model) else model
    teachers = single_teachers(getattr(model, "teacher", None))
    return [teacher for teacher in teachers if isinstance(teacher, CachedTeacher)]
