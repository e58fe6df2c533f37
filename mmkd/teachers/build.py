"""From ``teacher=dict(…)`` to the teacher that a student asks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmkd.errors import UserError
from mmkd.structures import Need
from mmkd.teachers.cached import CachedTeacher
from mmkd.teachers.config import is_named
from mmkd.teachers.ema import EMATeacher
from mmkd.teachers.frozen import FrozenTeacher
from mmkd.teachers.several import AveragedTeacher, NamedTeachers, Single

Teacher = Single | AveragedTeacher


def separate(teacher: Any, distill: Any) -> tuple[Any, dict[str, str]]:
    """Take from the losses' configs which teacher each of them asks.

    Args:
        teacher: the ``teacher`` of a model config.
        distill: name → config of a loss.

    Returns:
        The configs without ``teacher``, and from each loss to the name of its teacher. With one teacher, or a
        list that is averaged, the configs as they are and an empty dict.

    Raises:
        UserError: a loss names no teacher, or one that there is not; a teacher is asked by no loss.
    """
    if not is_named(teacher) or not isinstance(distill, Mapping):
        return distill, {}
    names = ", ".join(map(str, teacher))
    losses: dict[str, Any] = {}
    asks: dict[str, str] = {}
    for loss, cfg in distill.items():
        if not isinstance(cfg, Mapping):  # which `build_losses` reports
            return {loss: cfg}, {}
        named = cfg.get("teacher")
        if not isinstance(named, str) or named not in teacher:
            raise UserError(
                f"distill.{loss} does not say which of the teachers it learns from.",
                expected=f"teacher, one of: {names}",
                found="none" if named is None else repr(named),
                remedy=f"give it one, as in {loss}=dict(type=…, teacher='{next(iter(teacher))}')",
            )
        losses[loss] = {key: value for key, value in cfg.items() if key != "teacher"}
        asks[loss] = named
    idle = [name for name in teacher if asks and name not in asks.values()]
    if idle:
        raise UserError(
            f"No loss learns from teacher.{idle[0]}.",
            expected="each teacher named by a loss",
            found=", ".join(f"distill.{loss} asks {name}" for loss, name in asks.items()),
            remedy=f"leave it out, or give a loss teacher='{idle[0]}'",
        )
    return losses, asks


def build_teachers(
    teacher: Any, asks: Mapping[str, str], needs: Mapping[str, frozenset[Need]], student: Any
) -> Teacher | NamedTeachers:
    """Build the teacher of all losses, or several by name.

    Args:
        teacher: one entry for `build_teacher`, or such entries by name.
        asks: from each loss to the name of its teacher; empty for one teacher.
        needs: from each loss to the parts of `DenseOutputs` that it reads.
        student: the student.

    Raises:
        UserError: as `build_teacher`; or there are two EMA teachers.
    """
    if not asks:
        return build_teacher(teacher, frozenset[Need]().union(*needs.values()), student)
    built: dict[str, Teacher] = {}
    for name, entry in teacher.items():
        read = frozenset[Need]().union(*(needs[loss] for loss, asked in asks.items() if asked == name))
        built[name] = _within(f"teacher.{name}", entry, read, student)
    averages = [name for name, each in built.items() if isinstance(each, EMATeacher)]
    if len(averages) > 1:
        raise UserError(f"there can be one EMA teacher, found {', '.join(averages)}")
    return NamedTeachers(built, asks)


def build_teacher(teacher: Any, needs: frozenset[Need], student: Any) -> Teacher:
    """Build one teacher.

    A `FrozenTeacher`, behind a `CachedTeacher` if ``teacher`` has a ``cache``; an `EMATeacher` for
    ``dict(ema=…)``; an `AveragedTeacher` for a list.

    Args:
        teacher: see `FrozenTeacher`, `EMATeacher` and, for its ``cache``, `CachedTeacher`.
        needs: the parts of `DenseOutputs` that the losses read.
        student: the student.

    Raises:
        UserError: as these do.
    """
    if isinstance(teacher, (list, tuple)):
        members = [_within(f"teacher[{i}]", entry, needs, student) for i, entry in enumerate(teacher)]
        singles = [m for m in members if not isinstance(m, (EMATeacher, AveragedTeacher))]
        if len(singles) < len(members):
            raise UserError("teacher=[…] averages trained detectors, dict(config=…, checkpoint=…) each")
        return AveragedTeacher(singles, needs)
    if isinstance(teacher, Mapping) and "ema" in teacher:
        return EMATeacher(teacher, needs, student)
    live = FrozenTeacher(teacher, needs, student)
    options = teacher.get("cache")
    if options is None:
        return live
    if not isinstance(options, Mapping):
        raise UserError(f"teacher.cache must be a dict, like cache=dict(dir='…'), found {options!r}")
    for name in ("dir", "dtype"):
        if not isinstance(options.get(name, ""), (str, Path)):
            raise UserError(f"teacher.cache.{name} must be a string, found {options[name]!r}")
    return CachedTeacher(live, options, student)


def _within(place: str, entry: Any, needs: frozenset[Need], student: Any) -> Teacher:
    """Build it; an error says which of the teachers it is about."""
    try:
        return build_teacher(entry, needs, student)
    except UserError as error:
        raise error.at(place) from error
