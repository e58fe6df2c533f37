"""Check that the heads of teacher and student have the same priors."""

from __future__ import annotations

from mmkd.errors import UserError
from mmkd.structures import HeadSpec, Need

EVERYTHING: frozenset[Need] = frozenset({"feats", "cls_logits", "bbox_pred", "boxes", "extra"})
_PER_PRIOR = EVERYTHING - {"feats"}


def check_heads(
    student: HeadSpec,
    teacher: HeadSpec,
    needs: frozenset[Need] = EVERYTHING,
    *,
    pairs_priors: bool = True,
) -> None:
    """Compare the parts of two heads that the losses read.

    Args:
        student: the layout of the student's head.
        teacher: the layout of the teacher's head.
        needs: the parts that the losses read. Classes are compared for class logits, base priors for
            everything that exists per prior, levels and strides always.
        pairs_priors: whether a loss compares each of the student's priors with one of the teacher's. If not,
            both only need to have priors.

    Raises:
        UserError: classes, levels, strides or base priors differ.
    """
    if "cls_logits" in needs and _layout(student) != _layout(teacher):
        raise UserError(
            "Teacher and student have different classes.",
            expected=_classes(student) + " (the student's)",
            found=_classes(teacher) + " (the teacher's)",
            remedy="use a teacher trained on the student's classes, or correct "
            "model.bbox_head.num_classes; losses on features or boxes do not need equal classes",
        )
    compared = [
        ("levels", len(student.strides), len(teacher.strides)),
        ("strides", student.strides, teacher.strides),
    ]
    everywhere = all((*student.num_base_priors, *teacher.num_base_priors))
    if needs & _PER_PRIOR and (pairs_priors or not everywhere):
        compared.append(("base priors per level", student.num_base_priors, teacher.num_base_priors))
    for what, of_student, of_teacher in compared:
        if of_student != of_teacher:
            raise UserError(
                f"Teacher and student differ in {what}, so their "
                f"{'maps' if what in ('levels', 'strides') else 'priors'} do not correspond.",
                expected=f"{of_student} (the student's)",
                found=f"{of_teacher} (the teacher's)",
                remedy=_remedy(student, teacher, needs, what),
            )


def levels_by_stride(student: HeadSpec, teacher: HeadSpec) -> list[int | None]:
    """``teacher.levels`` for features: the teacher's level with the stride of each of the student's levels.

    Returns:
        The index of the teacher's level, ``None`` if no level has that stride; ends at the last match.
    """
    found = [
        teacher.strides.index(stride) if stride in teacher.strides else None for stride in student.strides
    ]
    while found and found[-1] is None:
        found.pop()
    return found


def _remedy(student: HeadSpec, teacher: HeadSpec, needs: frozenset[Need], what: str) -> str:
    levels = levels_by_stride(student, teacher)
    if not needs & _PER_PRIOR and levels:
        return f"set teacher.levels={levels}, the levels with equal strides, or use another teacher"
    general = "give the student the teacher's neck outputs and prior generator, or another teacher"
    if what.startswith("base"):
        return (
            f"{general}; feature losses do not need matching priors, nor does CrossKDLoss with losses that "
            "read no assigned objects, like dict(type='BCKDLoss', normalizer='batch')"
        )
    return f"{general}, or select its levels with teacher.levels"


def _layout(spec: HeadSpec) -> tuple[int, int]:
    return spec.num_classes, spec.cls_channels


def _classes(spec: HeadSpec) -> str:
    activation = "sigmoid" if spec.use_sigmoid else "softmax with background"
    return f"{spec.num_classes} classes, {activation}"
