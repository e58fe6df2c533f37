"""Builds a student's teacher from ``teacher=dict(…)``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mmengine.logging import print_log

from mmkd.errors import UserError, check_arguments
from mmkd.structures import OF_CONTEXT, Need
from mmkd.teachers.cached import CachedTeacher
from mmkd.teachers.config import OF_EVERY_TEACHER, is_named, registered_class
from mmkd.teachers.ema import EMATeacher
from mmkd.teachers.fitted import FittedTeacher
from mmkd.teachers.frozen import FrozenTeacher
from mmkd.teachers.protocol import Teacher
from mmkd.teachers.several import AveragedTeacher, NamedTeachers, single_teachers

_OF_STUDENT = OF_CONTEXT - {"layers"}


def split_teachers(teacher: Any, distill: Any) -> tuple[Any, dict[str, str]]:
    """Extract from the losses' configs which teacher each loss uses.

    Args:
        teacher: the ``teacher`` of a model config.
        distill: name → config of a loss.

    Returns:
        The configs without ``teacher``, and the name of the teacher per loss. For one teacher, or a list to
        average, the unchanged configs and an empty dict.

    Raises:
        UserError: a loss names no teacher or an unknown one, or a teacher is used by no loss.
    """
    if not is_named(teacher) or not isinstance(distill, Mapping):
        return distill, {}
    names = ", ".join(map(str, teacher))
    losses: dict[str, Any] = {}
    asks: dict[str, str] = {}
    for loss, cfg in distill.items():
        if not isinstance(cfg, Mapping):  # `build_losses` reports it
            return {loss: cfg}, {}
        named = cfg.get("teacher")
        if not isinstance(named, str) or named not in teacher:
            raise UserError(
                f"distill.{loss} does not name its teacher.",
                expected=f"teacher set to one of: {names}",
                found="none" if named is None else repr(named),
                remedy=f"name one, as in {loss}=dict(type=…, teacher='{next(iter(teacher))}')",
            )
        losses[loss] = {key: value for key, value in cfg.items() if key != "teacher"}
        asks[loss] = named
    idle = [name for name in teacher if asks and name not in asks.values()]
    if idle:
        raise UserError(
            f"No loss uses teacher.{idle[0]}.",
            expected="every teacher used by a loss",
            found=", ".join(f"distill.{loss} uses {name}" for loss, name in asks.items()),
            remedy=f"remove it, or set teacher='{idle[0]}' in a loss",
        )
    return losses, asks


def build_teachers(
    teacher: Any, asks: Mapping[str, str], needs: Mapping[str, frozenset[Need]], student: Any
) -> Teacher | NamedTeachers:
    """Build one teacher for all losses, or several by name.

    Args:
        teacher: one entry for `build_teacher`, or named entries.
        asks: the name of the teacher per loss; empty for one teacher.
        needs: the parts of `DenseOutputs` that each loss reads.
        student: the student.

    Raises:
        UserError: as in `build_teacher`; or there are two EMA teachers.
    """
    if not asks:
        return build_teacher(teacher, frozenset[Need]().union(*needs.values()), student)
    built: dict[str, Teacher] = {}
    for name, entry in teacher.items():
        read = frozenset[Need]().union(*(needs[loss] for loss, asked in asks.items() if asked == name))
        built[name] = _within(f"teacher.{name}", entry, read, student)
    teachers = NamedTeachers(built, asks)
    _check_one_average(teachers)
    return teachers


def build_teacher(teacher: Any, needs: frozenset[Need], student: Any) -> Teacher:
    """Build one teacher.

    Usually a `FrozenTeacher`, or the class from `mmkd.registry.TEACHERS` that ``type`` names; wrapped in a
    `FittedTeacher`, and that in a `CachedTeacher` if ``teacher`` has a ``cache``. ``dict(ema=…)`` gives an
    `EMATeacher`, a list an `AveragedTeacher`.

    Args:
        teacher: see these classes.
        needs: the parts of `DenseOutputs` that the losses read.
        student: the student.

    Raises:
        UserError: as in these classes.
    """
    if isinstance(teacher, (list, tuple)):
        members = [_within(f"teacher[{i}]", entry, needs, student) for i, entry in enumerate(teacher)]
        average = AveragedTeacher(members, needs)
        _check_one_average(average)
        return average
    if isinstance(teacher, Mapping) and "ema" in teacher:
        return EMATeacher(teacher, needs, student)
    kind = registered_class(teacher)
    if kind is None:
        inner: Teacher = FrozenTeacher(teacher, needs, student)
    else:
        inner = _build_registered(kind, teacher, needs, student)
    fitted = FittedTeacher(inner, teacher, needs, student)
    options = teacher.get("cache")
    if options is None:
        return cast(Teacher, fitted)
    if not isinstance(options, Mapping):
        raise UserError(f"teacher.cache must be a dict, like cache=dict(dir='…'), found {options!r}")
    for name in ("dir", "dtype"):
        if not isinstance(options.get(name, ""), (str, Path)):
            raise UserError(f"teacher.cache.{name} must be a string, found {options[name]!r}")
    return cast(Teacher, CachedTeacher(fitted, options, needs, student))


def _build_registered(
    kind: type[Teacher], entry: Mapping[str, Any], needs: frozenset[Need], student: Any
) -> Teacher:
    options = {key: entry[key] for key in set(entry) - {"type", "_scope_", *OF_EVERY_TEACHER}}
    offered = {"needs": needs - _OF_STUDENT, "student": student}
    given = {name: offered[name] for name in inspect.signature(kind).parameters if name in offered}
    check_arguments("teacher", {*options, *given}, kind)
    lacking = offered["needs"] - kind.gives
    if lacking:
        raise UserError(
            f"The teacher {kind.__name__} does not provide what the losses need.",
            expected=f"losses on {', '.join(sorted(kind.gives))}",
            found=f"a loss that needs {', '.join(sorted(lacking))}",
            remedy="choose other losses, or give these another teacher: teacher=dict(a=…, b=…), "
            "distill=dict(cls=dict(…, teacher='a'))",
        )
    teacher = kind(**options, **given)
    teacher.needs = offered["needs"]
    print_log(f"teacher: {kind.__name__}", "current")
    return teacher


def _check_one_average(teacher: Any) -> None:
    count = sum(isinstance(single, EMATeacher) for single in single_teachers(teacher))
    if count > 1:
        raise UserError(f"expected at most one EMA teacher, found {count}")


def _within(place: str, entry: Any, needs: frozenset[Need], student: Any) -> Teacher:
    """Build a teacher; errors name the entry."""
    try:
        return build_teacher(entry, needs, student)
    except UserError as error:
        raise error.at(place) from error
