"""From ``teacher=dict(…)`` to the teacher that a student asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmkd.errors import UserError
from mmkd.structures import Need
from mmkd.teachers.cached import CachedTeacher
from mmkd.teachers.frozen import FrozenTeacher

Teacher = FrozenTeacher | CachedTeacher


def build_teacher(teacher: Mapping[str, Any], needs: frozenset[Need], student: Any) -> Teacher:
    """Build a `FrozenTeacher`, behind a `CachedTeacher` if ``teacher`` has a ``cache``.

    Args:
        teacher: see `FrozenTeacher` and, for its ``cache``, `CachedTeacher`.
        needs: the parts of `DenseOutputs` that the losses read.
        student: the student.

    Raises:
        UserError: as these two do.
    """
    live = FrozenTeacher(teacher, needs, student)
    options = teacher.get("cache")
    if options is None:
        return live
    if not isinstance(options, Mapping):
        raise UserError(f"teacher.cache must be a dict, like cache=dict(dir='…'), found {options!r}")
    return CachedTeacher(live, options, student)
