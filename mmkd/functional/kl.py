"""Distillation losses on plain tensors; they need only torch.

Shape suffixes: N priors (or samples), K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmkd.functional.checks import check_bool, check_choice, check_number, check_pair, exact
from mmkd.functional.kernels import KLDivergence

Activation = Literal["softmax", "sigmoid"]
Reduction = Literal["none", "sum", "batchmean", "mean"]


def kl_divergence(
    student_NK: Tensor,
    teacher_NK: Tensor,
    *,
    temperature: float = 1.0,
    activation: Activation = "softmax",
    weight_N: Tensor | None = None,
    reduction: Reduction = "batchmean",
    avg_factor: Tensor | float | None = None,
    standardize: bool = False,
) -> Tensor:
    r"""Temperature-scaled KL divergence of the student from the teacher.

    With :math:`p = \mathrm{softmax}(z / T)` the value of one prior is

    .. math:: T^2 \sum_c p^t_c \log (p^t_c / p^s_c)

    and with ``activation='sigmoid'``, for heads trained with (quality) focal
    loss, :math:`T^2 \sum_c \mathrm{KL}(\mathrm{Bern}(\sigma(z^t_c / T)) \,\|\,
    \mathrm{Bern}(\sigma(z^s_c / T)))`. The factor :math:`T^2` keeps the size of
    the gradient when T changes. Half-precision input is computed in float32,
    also under autocast. The teacher gets no gradient.

    With ``standardize`` the logits z are replaced by their z-scores over the classes of the prior,
    :func:`standardized_logits`, so the student matches the order and spacing of the teacher's logits but not
    their magnitude.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015
    (https://arxiv.org/abs/1503.02531), section 2. Reference implementation of the softmax form for detectors:
    mmdet's ``KnowledgeDistillationKLDivLoss``, which averages over classes instead of summing.

    Args:
        student_NK: logits, before any activation.
        teacher_NK: logits of the same shape.
        temperature: T > 0.
        activation: ``'softmax'`` or ``'sigmoid'``.
        weight_N: a factor ≥ 0 for each prior; 1 if not given.
        reduction: ``'none'`` gives (N,); ``'sum'`` the weighted sum;
            ``'batchmean'`` the sum / ``avg_factor``; ``'mean'`` the
            sum / (``avg_factor`` · K). The names are those of `F.kl_div`.
        avg_factor: divisor of the two means; N by default.
        standardize: take z-scores over the classes before the temperature.

    Returns:
        A scalar, or (N,) with ``reduction='none'``; ≥ 0 up to rounding.

    Raises:
        ValueError: the shapes differ or are not (N, K); a softmax over one class (always 1) or z-scores over
            two; a bad option.

    Example:
        >>> student_NK = torch.tensor([[0.0, 0.0], [2.0, 0.0]], requires_grad=True)
        >>> teacher_NK = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
        >>> value = kl_divergence(student_NK, teacher_NK, reduction="none")
        >>> value
        tensor([0.3278, 0.0000], grad_fn=<KLDivergenceBackward>)
        >>> value.sum().backward()
        >>> student_NK.grad
        tensor([[-0.3808,  0.3808],
                [ 0.0000,  0.0000]])
    """
    check_kl_options(temperature, activation, reduction, standardize)
    check_pair(student_NK, teacher_NK, weight_N)
    check_softmax_classes(activation, student_NK.shape[1], standardize)

    with torch.autocast(student_NK.device.type, enabled=False):
        if standardize:
            student_NK, teacher_NK = standardized_logits(student_NK), standardized_logits(teacher_NK.detach())
        value_N = KLDivergence.apply(student_NK, teacher_NK.detach(), float(temperature), activation)
        classes = student_NK.shape[1] if reduction == "mean" else 1
        return reduce_priors(value_N, weight_N, reduction, avg_factor, classes)


def reduce_priors(
    value_N: Tensor,
    weight_N: Tensor | None,
    reduction: str,
    avg_factor: Tensor | float | None,
    classes: int = 1,
) -> Tensor:
    """Weigh and reduce per-prior values: ``none``, ``sum``, or the sum / (``avg_factor`` · ``classes``).

    Example:
        >>> reduce_priors(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 0.5]), "batchmean", 7.0)
        tensor(0.5000)
    """
    if weight_N is not None:
        value_N = value_N * weight_N
    if reduction == "none":
        return value_N
    total = value_N.sum()
    if reduction == "sum":
        return total
    return total / ((max(1, len(value_N)) if avg_factor is None else avg_factor) * classes)


def standardized_logits(logits_NK: Tensor) -> Tensor:
    r"""The z-scores of logits over their classes.

    .. math:: (z_c - \bar z) / s, \qquad s^2 = \frac{1}{K - 1} \sum_c (z_c - \bar z)^2

    s is at least 1e-4, so logits that are all equal have z-scores of zero and a finite gradient; the
    reference implementation adds 1e-7 to it.

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024
    (https://arxiv.org/abs/2403.01427), which divides by K; its reference implementation divides by K − 1, as
    here (``normalize`` of https://github.com/sunshangquan/logit-standardization-KD).

    Args:
        logits_NK: with K ≥ 2.

    Returns:
        (N, K), float32 or float64. With K = 2 they are ±1/√2, whatever the logits.

    Example:
        >>> standardized_logits(torch.tensor([[1.0, 2.0, 3.0], [10.0, 30.0, 50.0]]))
        tensor([[-1.,  0.,  1.],
                [-1.,  0.,  1.]])
    """
    logits_NK = exact(logits_NK)
    centered_NK = logits_NK - logits_NK.mean(dim=1, keepdim=True)
    variance_N1 = centered_NK.square().sum(dim=1, keepdim=True) / (logits_NK.shape[1] - 1)
    # Clamp the square: the root has no gradient at 0.
    return centered_NK / variance_N1.clamp(min=1e-8).sqrt()


def check_kl_options(temperature: float, activation: str, reduction: str, standardize: bool = False) -> None:
    """Raise ValueError if an option of `kl_divergence` is out of its range."""
    check_bool(standardize=standardize)
    check_number("(0, inf)", temperature=temperature)
    check_choice("activation", activation, Activation)
    check_choice("reduction", reduction, Reduction)


def check_softmax_classes(activation: str, cls_channels: int, standardize: bool = False) -> None:
    """Raise ValueError for a softmax over one class or z-scores over two: their KL has no gradient."""
    if activation == "softmax" and cls_channels == 1:
        raise ValueError(
            "softmax over one class is always 1, so its KL divergence is always 0; use activation='sigmoid'"
        )
    if standardize and cls_channels < 3:
        raise ValueError(
            f"z-scores over {cls_channels} class(es) depend only on the sign of the logits; use "
            "standardize=False"
        )
