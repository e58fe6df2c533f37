"""A data set's classes among a teacher's, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log

from mmkd.datasets import class_names
from mmkd.errors import UserError
from mmkd.teachers.several import Single


def find_classes(teacher: Single, class_map: Mapping[str, str], dataset_meta: Any) -> None:
    """Have a teacher give its logits of a data set's classes, in their order.

    Args:
        teacher: one that was trained on the same classes, or on more.
        class_map: from a name of the data set's to the teacher's name for it.
        dataset_meta: the data set's metainfo; a list of them for one of several parts.

    Raises:
        UserError: the teacher does not know one of them, or the student's head is for another number.
    """
    if "cls_logits" not in teacher.needs:  # features and boxes are of no class
        return
    own, taught = class_names(dataset_meta), teacher.class_names
    if own is None or taught is None:
        if teacher.awaits_classes:
            raise UserError(
                "Teacher and student have different numbers of classes, and the data set names none.",
                expected="class names in the data set's metainfo, to find them among the teacher's",
                found="none",
                remedy="give metainfo=dict(classes=…)",
            )
        return
    renamed = [class_map.get(name, name) for name in own]
    if renamed == list(taught):
        return
    strange = [name for name, theirs in zip(own, renamed) if theirs not in taught]
    if strange:
        raise UserError(
            "The teacher does not know all of the student's classes.",
            expected=_shortened(own) + " (the training data set's)",
            found=f"{_shortened(taught)} (the teacher's checkpoint); without {_shortened(strange)}",
            remedy="say what the teacher calls them, as in teacher=dict(class_map={'mine': 'theirs'}), "
            "or use a teacher that was trained on these",
        )
    if teacher.awaits_classes and len(own) != teacher.spec.num_classes:
        raise UserError(
            "The student's head and its data set have different numbers of classes.",
            expected=f"model.bbox_head.num_classes={len(own)}, for {_shortened(own)}",
            found=str(teacher.spec.num_classes),
            remedy="correct model.bbox_head.num_classes",
        )
    teacher.map_classes(own, class_map)
    mapping = ", ".join(f"{name} ← {taught.index(theirs)} {theirs}" for name, theirs in zip(own, renamed))
    print_log(f"the teacher's classes by name: {mapping}", "current")


def _shortened(names: Any) -> str:
    names = list(names)
    return f"{len(names)}: " + ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
