"""Functions for crossing two heads; they need only torch.

Shape suffixes: B images, C channels, H and W map size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmkd.functional.checks import exact

_EPSILON = 1e-6


def match_statistics(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    r"""Bring each channel of the student to the mean and standard deviation of the teacher's.

    .. math:: \frac{f^s_c - \mu^s_c}{\sigma^s_c + 10^{-6}} \, \sigma^t_c + \mu^t_c

    with the (unbiased) statistics of a channel over all images and positions of the batch. The gradient goes
    through the student's statistics; the teacher gets none.

    Source: jbwang1997/CrossKD, ``align_scale``.

    Args:
        student_BCHW: features; half precision is computed in float32.
        teacher_BCHW: features with as many channels.

    Returns:
        B×C×H×W of the student, float32 or float64.

    Raises:
        ValueError: the numbers of channels differ.

    Example:
        >>> matched = match_statistics(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 8, 8) * 5 + 2)
        >>> bool((matched.std((0, 2, 3)) > 3).all())
        True
    """
    if student_BCHW.shape[1] != teacher_BCHW.shape[1]:
        raise ValueError(
            f"expected features of equal width, found student {student_BCHW.shape[1]} "
            f"and teacher {teacher_BCHW.shape[1]}"
        )
    student, teacher = exact(student_BCHW), exact(teacher_BCHW.detach())
    mean_s, mean_t = (x.mean((0, 2, 3), keepdim=True) for x in (student, teacher))
    # The unbiased deviation of a single value is undefined; use zero.
    std_s, std_t = (
        x.std((0, 2, 3), keepdim=True) if x[:, 0].numel() > 1 else torch.zeros_like(x[:1, :, :1, :1])
        for x in (student, teacher)
    )
    return (student - mean_s) / (std_s + _EPSILON) * std_t + mean_t
