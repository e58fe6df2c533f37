"""The frozen teacher: building, strict loading, its forward, and its answers on disk."""

from mmkd.teachers.build import Teacher, build_teacher
from mmkd.teachers.cached import CachedTeacher
from mmkd.teachers.config import plain_detector, teacher_model_and_checkpoint
from mmkd.teachers.frozen import FrozenTeacher, build_detector

__all__ = [
    "CachedTeacher",
    "FrozenTeacher",
    "Teacher",
    "build_detector",
    "build_teacher",
    "plain_detector",
    "teacher_model_and_checkpoint",
]
