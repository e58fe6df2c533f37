"""Several teachers: averaged, or one per loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from mmkd.errors import UserError
from mmkd.structures import DenseOutputs, Levels, Need
from mmkd.teachers.protocol import Selectable, Teacher


class AveragedTeacher(Teacher):
    """Several teachers as one: the mean of their outputs.

    Class logits, raw box outputs, decoded boxes, other outputs and features are averaged separately: logits
    before their sigmoid or softmax; boxes after each member decoded its own. A prior missing in one member's
    sparse cache is not used by any loss.

    ``facts["checkpoint"]`` is the first member's, from which ``inherit`` takes weights; ``facts["teachers"]``
    has the facts of all.

    Source: the mean of logits is the ensemble of https://arxiv.org/abs/1503.02531, geometric for a softmax.

    Args:
        members: at least one teacher; each keeps its own cache, precision, levels and classes.
        needs: the parts of `DenseOutputs` that the losses read.

    Raises:
        UserError: there are no members, a loss accesses the teacher's head, or the members differ in what is
            averaged.
    """

    def __init__(self, members: Sequence[Teacher], needs: frozenset[Need]) -> None:
        if not members:
            raise UserError(
                "teacher is an empty list; expected at least one entry, teacher=[dict(config=…), …]"
            )
        if needs & {"towers", "layers", "places", "detections"}:
            raise UserError(
                "CrossKD and other losses on a teacher's layers need a single teacher.",
                expected="losses on features or dense outputs",
                found="averaged teachers, and a loss that needs the teacher's head layers (CrossKD), "
                "cascade heads or detections",
                remedy="use a single teacher for that loss: teacher=dict(a=dict(config=…), b=…), "
                "distill=dict(cross=dict(type='CrossKDLoss', teacher='a'))",
            )
        self.members = list(members)
        self.needs, self.spec = needs, self.members[0].spec
        _check_alike(self.members, needs)
        first = self.members[0].facts
        self.facts: dict[str, Any] = {
            "detector": "mean of " + ", ".join(str(member.facts["detector"]) for member in self.members),
            "config": first["config"],
            "checkpoint": first["checkpoint"],
            "parameters_computed": sum(member.facts["parameters_computed"] for member in self.members),
            "teachers": [member.facts for member in self.members],
        }

    def find_classes(self, dataset_meta: Any) -> None:
        """As `Teacher.find_classes`, for each member."""
        for member in self.members:
            member.find_classes(dataset_meta)

    def compared_levels(self, student: Selectable) -> Selectable:
        """As for the first member."""
        return self.members[0].compared_levels(student)

    def for_example(self) -> DenseOutputs | None:
        """As for the first member, which has the layout of all."""
        return self.members[0].for_example()

    def ask(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> Callable[[], DenseOutputs]:
        """As `Teacher.ask`, for all members."""
        answers = [member.ask(inputs_BCHW, data_samples) for member in self.members]
        return lambda: average([answer() for answer in answers], self.needs)

    def answer(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> DenseOutputs:
        """As `Teacher.answer`."""
        return self.ask(inputs_BCHW, data_samples)()

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """As `Teacher.apply_`, for each member."""
        for member in self.members:
            member.apply_(fn)


class NamedTeachers:
    """Teachers by name, and the teacher of each loss.

    ``facts["checkpoint"]`` is the first teacher's, from which ``inherit`` takes weights;
    ``facts["teachers"]`` has the facts of each by name.

    Args:
        teachers: the teachers by name.
        asks: the name of the teacher per loss.
    """

    def __init__(self, teachers: Mapping[str, Teacher], asks: Mapping[str, str]) -> None:
        self.teachers = dict(teachers)
        self.asks = dict(asks)
        first = next(iter(self.teachers.values())).facts
        self.facts: dict[str, Any] = {
            "detector": ", ".join(f"{name}: {t.facts['detector']}" for name, t in self.teachers.items()),
            "config": first["config"],
            "checkpoint": first["checkpoint"],
            "parameters_computed": sum(t.facts["parameters_computed"] for t in self.teachers.values()),
            "teachers": {name: teacher.facts for name, teacher in self.teachers.items()},
        }

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """As `Teacher.apply_`, for each."""
        for teacher in self.teachers.values():
            teacher.apply_(fn)

    def find_classes(self, dataset_meta: Any) -> None:
        """As `Teacher.find_classes`, for each."""
        for teacher in self.teachers.values():
            teacher.find_classes(dataset_meta)

    def __deepcopy__(self, memo: dict[int, Any]) -> NamedTeachers:
        return self


def asked_by(teacher: Any, losses: Sequence[str]) -> list[tuple[Any, list[str]]]:
    """The teachers in use, each with the names of its losses.

    Args:
        teacher: `NamedTeachers`, or one teacher for all losses.
        losses: names of losses; without losses, no teacher is used.
    """
    if not isinstance(teacher, NamedTeachers):
        return [(teacher, list(losses))] if losses else []
    asked = [(t, [x for x in losses if teacher.asks[x] == name]) for name, t in teacher.teachers.items()]
    return [(each, names) for each, names in asked if names]


def single_teachers(teacher: Any) -> list[Any]:
    """The single teachers in a model's ``teacher``, in config order."""
    if isinstance(teacher, NamedTeachers):
        return [single for each in teacher.teachers.values() for single in single_teachers(each)]
    if isinstance(teacher, AveragedTeacher):
        return [single for each in teacher.members for single in single_teachers(each)]
    return [teacher]


def average(answers: Sequence[DenseOutputs], needs: frozenset[Need]) -> DenseOutputs:
    """The arithmetic mean of several answers for one batch, part by part.

    Args:
        answers: the answers of teachers with the same layout; at least one.
        needs: the parts that are read. Others are left out; of features only the sizes are kept.

    Raises:
        UserError: the maps are of different sizes.
    """
    first = answers[0]
    sizes = [[tuple(level.shape[-2:]) for level in answer.feats] for answer in answers]
    if any(other != sizes[0] for other in sizes):
        raise UserError(
            "The teachers' feature maps differ in size for the same images.",
            expected=f"{sizes[0]} (the first one's)",
            found=f"{next(other for other in sizes if other != sizes[0])}",
            remedy="set data_preprocessor.pad_size_divisor to a multiple of all backbones' largest stride",
        )

    def mean(part: Callable[[DenseOutputs], Levels | None]) -> Levels | None:
        given = [part(answer) for answer in answers]
        if any(levels is None for levels in given):
            return None
        return tuple(torch.stack(level).mean(dim=0) for level in zip(*(x for x in given if x is not None)))

    def extra(name: str) -> Levels:
        return mean(lambda answer: answer.extra[name]) or ()

    known = [answer.known_N for answer in answers if answer.known_N is not None]
    return replace(
        first,
        feats=mean(lambda answer: answer.feats) or () if "feats" in needs else first.feats,
        cls_logits=mean(lambda answer: answer.cls_logits),
        bbox_pred=mean(lambda answer: answer.bbox_pred) if "bbox_pred" in needs else None,
        boxes=mean(lambda answer: answer.boxes),
        extra={name: extra(name) for name in first.extra} if "extra" in needs else {},
        known_N=reduce(torch.logical_and, known) if known else None,
    )


def _check_alike(members: Sequence[Teacher], needs: frozenset[Need]) -> None:
    first: dict[str, tuple[int, Any]] = {}
    for index, member in enumerate(members):
        for what, found in _layout(member, needs).items():
            other, wanted = first.setdefault(what, (index, found))
            if found != wanted:
                raise UserError(
                    f"Cannot average these teachers: they differ in {what}.",
                    expected=f"{wanted} (teacher[{other}]'s)",
                    found=f"{found} (teacher[{index}]'s)",
                    remedy="choose matching teachers, losses that do not read this, or one teacher per loss: "
                    "teacher=dict(a=dict(config=…), b=…), distill=dict(cls=dict(…, teacher='a'))",
                )


def _layout(member: Teacher, needs: frozenset[Need]) -> dict[str, Any]:
    """What must be the same in all teachers, where known; the keys are the names for messages."""
    # Classes and base priors were compared with the student's; `levels` may select only some levels.
    layout: dict[str, Any] = {"strides": member.spec.strides}
    outputs = member.for_example() if needs & {"feats", "bbox_pred", "extra"} else None
    if outputs is None:
        return layout
    if "feats" in needs:
        layout["the widths of the features"] = [level.shape[1] for level in outputs.feats]
    if "bbox_pred" in needs:
        layout["the channels of the box output"] = [level.shape[1] for level in outputs.bbox_pred or ()]
        layout["the box encoding"] = type(getattr(member.head, "bbox_coder", None)).__name__
    if "extra" in needs:
        layout["further outputs"] = sorted(outputs.extra)
    return layout
