"""The frozen teacher: building, strict loading, its forward, and its answers on disk."""

from mmkd.teachers.build import Teacher, build_teacher
from mmkd.teachers.cached import CachedTeacher
from mmkd.teachers.config import check_class_map, plain_detector, teacher_model_and_checkpoint
from mmkd.teachers.frozen import FrozenTeacher, build_detector
from mmkd.teachers.inherit import check_inherit, inherit_weights

__all__ = [
    "CachedTeacher",
    "FrozenTeacher",
    "Teacher",
    "build_detector",
    "build_teacher",
    "check_class_map",
    "check_inherit",
    "inherit_weights",
    "plain_detector",
    "teacher_model_and_checkpoint",
]
