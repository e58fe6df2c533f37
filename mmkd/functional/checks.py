"""Shared code of the loss functions: argument checks and precision."""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from torch import Tensor


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise ValueError unless an option is one of its choices.

    Args:
        name: the option.
        value: its value.
        choices: its valid values, a `Literal` or a tuple.
    """
    valid = choices if isinstance(choices, tuple) else get_args(choices)
    if value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(valid)}, found {value!r}")


def is_number(value: Any) -> bool:
    """Whether the value is an int or a float, but not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_number(interval: str, **options: Any) -> None:
    """Raise ValueError unless options are numbers in an interval, like ``(0, 1]`` or ``[0, inf)``."""
    low, high = (float(end) for end in interval[1:-1].split(", "))
    least = f"{'≥' if interval[0] == '[' else 'above'} {low:g}"
    for name, value in options.items():
        inside = is_number(value) and low <= value <= high
        if not inside or (value == low and interval[0] == "(") or (value == high and interval[-1] == ")"):
            wanted = least if high == math.inf else f"in {interval}"
            raise ValueError(f"{name} must be a number {wanted}, found {value!r}")


def check_whole(least: int, **options: Any) -> None:
    """Raise ValueError unless options are whole numbers of at least ``least``."""
    for name, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number ≥ {least}, found {value!r}")


def check_bool(**options: Any) -> None:
    """Raise ValueError unless options are True or False."""
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, found {value!r}")


def check_factors(**factors: Any) -> None:
    """Raise ValueError if a factor is not a number ≥ 0, or if all are 0."""
    check_number("[0, inf)", **factors)
    if not any(factors.values()):
        raise ValueError(
            f"{' and '.join(factors)} are both 0, so the loss is always 0; set loss_weight=0 instead"
        )


def check_pair(student_NK: Tensor, teacher_NK: Tensor, weight_N: Tensor | None) -> None:
    """Raise ValueError unless the logits have the same shape (N, K) and the weights (N,)."""
    if student_NK.dim() != 2 or student_NK.shape != teacher_NK.shape:
        raise ValueError(
            f"expected logits of equal shape (N, K), found student {tuple(student_NK.shape)} "
            f"and teacher {tuple(teacher_NK.shape)}"
        )
    if weight_N is not None and weight_N.shape != student_NK.shape[:1]:
        raise ValueError(f"expected weights ({student_NK.shape[0]},), found {tuple(weight_N.shape)}")


def checked_maps(
    student_BCHW: Tensor, teacher_BCHW: Tensor, same_width: bool = True
) -> tuple[Tensor, Tensor]:
    """The two maps in the same precision, at least float32; the teacher's without gradient.

    Args:
        student_BCHW: the student's map.
        teacher_BCHW: the teacher's.
        same_width: whether C must be equal too.

    Raises:
        ValueError: the shapes differ or are not (B, C, H, W).
    """
    own, taught = tuple(student_BCHW.shape), tuple(teacher_BCHW.shape)
    compared = [shape if same_width else shape[:1] + shape[2:] for shape in (own, taught)]
    if len(own) != 4 or len(taught) != 4 or compared[0] != compared[1]:
        form = "(B, C, H, W)" if same_width else "(B, any, H, W)"
        raise ValueError(f"expected maps of equal shape {form}, found student {own} and teacher {taught}")
    student_BCHW = exact(student_BCHW)
    return student_BCHW, teacher_BCHW.detach().to(student_BCHW.dtype)


def exact(x: Tensor) -> Tensor:
    """The tensor in float32, or float64 if it already is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
