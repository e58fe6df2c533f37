"""The teacher: building, strict loading, its forward, its answers on disk; several; the student's average."""

from mmkd.teachers.build import Teacher, build_teacher, build_teachers, separate
from mmkd.teachers.building import build_detector
from mmkd.teachers.cached import CachedTeacher
from mmkd.teachers.classes import find_classes
from mmkd.teachers.config import (
    check_class_map,
    distills,
    plain_detector,
    teacher_entries,
    teacher_model_and_checkpoint,
)
from mmkd.teachers.ema import EMATeacher
from mmkd.teachers.frozen import FrozenTeacher
from mmkd.teachers.inherit import check_inherit, inherit_weights
from mmkd.teachers.several import AveragedTeacher, NamedTeachers, asked_by, single_teachers

__all__ = [
    "AveragedTeacher",
    "CachedTeacher",
    "EMATeacher",
    "FrozenTeacher",
    "NamedTeachers",
    "Teacher",
    "asked_by",
    "build_detector",
    "build_teacher",
    "build_teachers",
    "check_class_map",
    "check_inherit",
    "distills",
    "find_classes",
    "inherit_weights",
    "plain_detector",
    "separate",
    "single_teachers",
    "teacher_entries",
    "teacher_model_and_checkpoint",
]
