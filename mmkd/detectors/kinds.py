"""Which detectors can be students, and the class of one that learns from a teacher."""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import BaseDetector, SemiBaseDetector, SingleStageDetector
from mmdet.models.detectors.d2_wrapper import Detectron2Wrapper
from mmdet.models.detectors.kd_one_stage import KnowledgeDistillationSingleStageDetector

from mmkd.errors import UserError
from mmkd.registry import MODELS, accepted_arguments

_NOT_STUDENTS = {
    SemiBaseDetector: "it has a teacher of its own",
    KnowledgeDistillationSingleStageDetector: "it has a teacher of its own",
    Detectron2Wrapper: "its features are inside of Detectron2",
}


def check_student(student: Any, named: Any) -> type:
    """The class of a student, if it can learn from a teacher.

    Args:
        student: what ``student`` means in the registry.
        named: how the config names it.

    Raises:
        UserError: it is no detector that is registered, or one that cannot learn this way.
    """
    if not (isinstance(student, type) and issubclass(student, BaseDetector)):
        detectors = sorted(
            name
            for name, kind in MODELS.module_dict.items()
            if isinstance(kind, type) and issubclass(kind, BaseDetector)
        )
        raise UserError(
            "KDDetector's student is no registered detector.",
            expected=f"student, one of: {', '.join(detectors)}",
            found=repr(named),
            remedy="give it the type of the student's own config, or list the module that registers it "
            "under custom_imports",
        )
    for kind, why in _NOT_STUDENTS.items():
        if issubclass(student, kind):
            raise UserError(
                f"{student.__name__} cannot be a student: {why}.",
                expected="a detector that computes its losses from features of its own",
                found=student.__name__,
                remedy="name the detector that it is made of",
            )
    return student


def check_single_stage(unknown: set[str]) -> None:
    """Raise `UserError` if options are those of detectors of another kind, like ``roi_head``."""
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
        "KDSingleStageDetector does not support this student: it is no single-stage detector.",
        expected="a student of backbone, neck and dense bbox_head (ATSS, RetinaNet, GFL, FCOS, …)",
        found=f"{', '.join(sorted(others[names[0]]))}, as in {', '.join(names[:4])}"
        + (", …" if len(names) > 4 else ""),
        remedy=f"set type='KDDetector', student='{names[0]}', or whatever its own config has as type",
    )
