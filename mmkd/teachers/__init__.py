"""Teachers: building, strict loading, forward pass, cache on disk; several teachers; EMA teacher."""

from mmkd.teachers.boxes import BoxesTeacher, CallableTeacher, PredictionsTeacher
from mmkd.teachers.build import build_teacher, build_teachers, split_teachers
from mmkd.teachers.building import build_detector
from mmkd.teachers.cached import CachedTeacher
from mmkd.teachers.config import (
    asked_every,
    distills,
    is_detector,
    plain_detector,
    teacher_entries,
    teacher_model_and_checkpoint,
)
from mmkd.teachers.ema import EMATeacher
from mmkd.teachers.fitted import FittedTeacher, check_class_map
from mmkd.teachers.frozen import FrozenTeacher, weights_digest
from mmkd.teachers.inherit import check_inherit, inherit_weights
from mmkd.teachers.protocol import Teacher
from mmkd.teachers.several import AveragedTeacher, NamedTeachers, asked_by, single_teachers

__all__ = [
    "AveragedTeacher",
    "BoxesTeacher",
    "CachedTeacher",
    "CallableTeacher",
    "EMATeacher",
    "FittedTeacher",
    "FrozenTeacher",
    "NamedTeachers",
    "PredictionsTeacher",
    "Teacher",
    "asked_by",
    "asked_every",
    "build_detector",
    "build_teacher",
    "build_teachers",
    "check_class_map",
    "check_inherit",
    "distills",
    "inherit_weights",
    "is_detector",
    "plain_detector",
    "single_teachers",
    "split_teachers",
    "teacher_entries",
    "teacher_model_and_checkpoint",
    "weights_digest",
]
