"""Update an EMA teacher during training and save its weights in checkpoints."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.runner.checkpoint import weights_to_cpu
from torch import Tensor

from mmkd.hooks.distill_state import check_same_shapes
from mmkd.registry import HOOKS
from mmkd.sharding import unwrapped
from mmkd.teachers import EMATeacher, single_teachers

KEY = "ema_teacher"


@HOOKS.register_module()
class EMATeacherHook(Hook):
    """Update an `EMATeacher` after each optimizer step.

    Needed with ``teacher=dict(ema=…)``; mmkd's train tool adds it. Without an EMA teacher it does nothing.
    The teacher starts as a copy of the student, after ``load_from``; with ``--resume`` it continues from the
    checkpoint's ``ema_teacher``. With gradient accumulation it is updated when the optimizer steps.

    Raises:
        UserError: on ``--resume``, if the saved weights belong to another student.
    """

    priority = "VERY_HIGH"  # before the hooks that write checkpoints

    def __init__(self) -> None:
        self._saved: dict[str, Tensor] | None = None

    def before_train(self, runner: Runner) -> None:
        """Initialise the teacher's weights."""
        teacher, saved = ema_teacher(runner.model), self._saved
        self._saved = None
        if teacher is None:
            return
        student = unwrapped(runner.model).state_dict()
        if runner.iter == 0:  # a loaded state is the end of another training
            teacher.begin(student)
        elif saved is None:
            print_log(
                "the checkpoint has no EMA teacher (ema_teacher): it starts as a copy of the student",
                "current",
                logging.WARNING,
            )
            teacher.begin(student)
        else:
            check_same_shapes("EMA teacher's weights", teacher.state_dict(), saved)
            teacher.begin(saved)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Update the teacher."""
        teacher = ema_teacher(runner.model)
        if teacher is not None and runner.optim_wrapper.should_update():
            teacher.step(unwrapped(runner.model))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Save the teacher's weights next to the student."""
        teacher = ema_teacher(runner.model)
        if teacher is not None:
            checkpoint[KEY] = weights_to_cpu(teacher.state_dict())

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Hold the weights until it is known whether training resumes or starts."""
        self._saved = checkpoint.get(KEY)


def ema_teacher(model: Any) -> EMATeacher | None:
    """A model's EMA teacher, if it has one; the model may be wrapped."""
    teachers = single_teachers(getattr(unwrapped(model), "teacher", None))
    return next((teacher for teacher in teachers if isinstance(teacher, EMATeacher)), None)
