"""Whether a teacher's head and a student's head speak of the same priors."""

from __future__ import annotations

from mmkd.errors import user_error
from mmkd.structures import HeadSpec


def check_heads(student: HeadSpec, teacher: HeadSpec) -> None:
    """Compare two heads prior by prior.

    Raises:
        UserError: classes, levels, strides or base priors differ.
    """
    if (student.num_classes, student.cls_channels) != (teacher.num_classes, teacher.cls_channels):
        raise user_error(
            "Teacher and student have different classes.",
            expected=_classes(student) + " (the student's)",
            found=_classes(teacher) + " (the teacher's)",
            remedy="use a teacher that was trained on the student's classes, or correct "
            "model.bbox_head.num_classes",
        )
    for what, of_student, of_teacher in (
        ("levels", len(student.strides), len(teacher.strides)),
        ("strides", student.strides, teacher.strides),
        ("base priors per level", student.num_base_priors, teacher.num_base_priors),
    ):
        if of_student != of_teacher:
            raise user_error(
                f"Teacher and student differ in {what}, so their priors cannot be compared one by one.",
                expected=f"{of_student} (the student's)",
                found=f"{of_teacher} (the teacher's)",
                remedy="give the student the teacher's neck outputs and prior generator, or another teacher",
            )


def _classes(spec: HeadSpec) -> str:
    activation = "sigmoid" if spec.use_sigmoid else "softmax with background"
    return f"{spec.num_classes} classes, {activation}"
