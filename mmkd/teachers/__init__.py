"""The frozen teacher: building, strict loading, and its forward."""

from mmkd.teachers.config import plain_detector, teacher_model_and_checkpoint
from mmkd.teachers.frozen import FrozenTeacher, build_detector

__all__ = ["FrozenTeacher", "build_detector", "plain_detector", "teacher_model_and_checkpoint"]
