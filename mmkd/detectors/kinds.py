"""Supported students, and the distilled class of a student."""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import LAD, BaseDetector, SemiBaseDetector, SingleStageDetector
from mmdet.models.detectors.d2_wrapper import Detectron2Wrapper
from mmdet.models.detectors.kd_one_stage import KnowledgeDistillationSingleStageDetector

from mmkd.errors import UserError
from mmkd.registry import MODELS, accepted_arguments

_NOT_STUDENTS = {
    SemiBaseDetector: "it has its own teacher",
    KnowledgeDistillationSingleStageDetector: "it has its own teacher",
    Detectron2Wrapper: "its features are inside Detectron2",
}


def check_student(student: Any, named: Any) -> type:
    """A student's class, if it can learn from a teacher.

    Args:
        student: the registry's entry for ``student``.
        named: its name in the config.

    Raises:
        UserError: it is not a registered detector, or cannot learn this way.
    """
    if not (isinstance(student, type) and issubclass(student, BaseDetector)):
        detectors = sorted(
            name
            for name, kind in MODELS.module_dict.items()
            if isinstance(kind, type) and issubclass(kind, BaseDetector)
        )
        raise UserError(
            "KDDetector's student is not a registered detector.",
            expected=f"student, one of: {', '.join(detectors)}",
            found=repr(named),
            remedy="use the model type of the student's config, or add the module that registers it to "
            "custom_imports",
        )
    for kind, why in _NOT_STUDENTS.items():
        if issubclass(student, kind):
            raise _no_student(student, why)
    return student


def _no_student(student: type, why: str) -> UserError:
    return UserError(
        f"{student.__name__} is not supported as a student: {why}.",
        expected="a detector that computes its losses from its own features",
        found=student.__name__,
        remedy="use the config of the detector that it wraps",
    )


def check_single_stage(unknown: set[str]) -> None:
    """Raise `UserError` if options belong to another kind of detector, like ``roi_head``."""
    for kind in (KnowledgeDistillationSingleStageDetector, LAD):
        own = set(accepted_arguments(kind)[0]) - set(accepted_arguments(SingleStageDetector)[0])
        if unknown & own:
            raise _no_student(kind, f"it has its own teacher ({', '.join(sorted(unknown & own))})")
    others = {
        name: unknown & set(accepted_arguments(kind)[0])
        for name, kind in MODELS.module_dict.items()
        if isinstance(kind, type)
        and issubclass(kind, BaseDetector)
        and not issubclass(kind, SingleStageDetector)
    }
    most = max(map(len, others.values()))
    if not most:
        return
    names = [name for name, options in others.items() if len(options) == most]
    raise UserError(
        "KDSingleStageDetector does not support this student: it is not a single-stage detector.",
        expected="a student with backbone, neck and dense bbox_head (ATSS, RetinaNet, GFL, FCOS, …)",
        found=f"{', '.join(sorted(others[names[0]]))}, as in {', '.join(names[:4])}"
        + (", …" if len(names) > 4 else ""),
        remedy=f"set type='KDDetector' and student='{names[0]}', or the type in its own config",
    )
