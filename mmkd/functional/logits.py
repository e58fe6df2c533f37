"""More distillation losses on class logits; they need only torch.

Shape suffixes: N priors (or samples), K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd.functional.checks import check_choice, check_factors, check_number, check_pair, exact
from mmkd.functional.kernels import KLDivergence
from mmkd.functional.kl import check_kl_options, reduce_priors

SumReduction = Literal["none", "sum", "batchmean"]


def modulated_bce(
    student_NK: Tensor,
    teacher_NK: Tensor,
    *,
    beta: float = 1.0,
    weight_N: Tensor | None = None,
    reduction: SumReduction = "batchmean",
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    r"""Binary cross-entropy with the teacher's scores, weighted by the student's distance from them.

    .. math:: \sum_c |\sigma(z^t_c) - \sigma(z^s_c)|^\beta \; \mathrm{BCE}(\sigma(z^s_c), \sigma(z^t_c))

    is the value of one prior: zero where both agree, although the cross-entropy is not. The gradient also
    flows through the weight, as in the reference implementation. Half-precision input is computed in float32,
    also under autocast. The teacher gets no gradient.

    Source: Yang et al., "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object
    Detection", ICCV 2023 (https://arxiv.org/abs/2308.14286). Reference implementation: ``novel_kd_loss`` of
    https://github.com/TinyTigerPan/BCKD.

    Args:
        student_NK: logits, before any activation.
        teacher_NK: logits of the same shape.
        beta: exponent ≥ 1; below 1, the gradient has a pole where both agree.
        weight_N: a factor ≥ 0 for each prior; 1 if not given.
        reduction: ``'none'`` gives (N,); ``'sum'`` the weighted sum; ``'batchmean'`` the sum /
            ``avg_factor``.
        avg_factor: divisor of the mean; N by default.

    Returns:
        A scalar, or (N,) with ``reduction='none'``; ≥ 0.

    Raises:
        ValueError: the shapes differ or are not (N, K); a bad option.

    Example:
        >>> logits_NK = torch.tensor([[0.0], [3.0]])
        >>> modulated_bce(logits_NK, torch.zeros(2, 1), reduction="none")
        tensor([0.0000, 0.7009])
    """
    check_number("[1, inf)", beta=beta)
    check_choice("reduction", reduction, SumReduction)
    check_pair(student_NK, teacher_NK, weight_N)
    with torch.autocast(student_NK.device.type, enabled=False):
        student_NK, p_t_NK = exact(student_NK), exact(teacher_NK.detach()).sigmoid()
        distance_NK = (p_t_NK - student_NK.sigmoid()).abs().pow(beta)
        bce_NK = F.binary_cross_entropy_with_logits(student_NK, p_t_NK, reduction="none")
        return reduce_priors((distance_NK * bce_NK).sum(dim=1), weight_N, reduction, avg_factor)


def decoupled_kl(
    student_NK: Tensor,
    teacher_NK: Tensor,
    target_N: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    temperature: float = 1.0,
    weight_N: Tensor | None = None,
    reduction: SumReduction = "batchmean",
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    r"""The KL divergence of softmaxes, split into a term for the target class and one for the rest.

    With :math:`p = \mathrm{softmax}(z / T)`, y the target class, :math:`b = (p_y, 1 - p_y)` and
    :math:`\hat p = \mathrm{softmax}` over the K − 1 other classes, the value of one prior is

    .. math:: T^2 ( \alpha \, \mathrm{KL}(b^t \| b^s) + \beta \, \mathrm{KL}(\hat p^t \| \hat p^s) )

    Hinton's KL is :math:`\alpha = 1, \beta = 1 - p^t_y`: it suppresses the second term where the teacher is
    sure. With two classes the second term is zero. Both are computed from logits; the reference
    implementation takes the logarithm of a probability, which may be 0, and masks the target's logit by
    −1000. Half-precision input is computed in float32, also under autocast. The teacher gets no gradient.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022 (https://arxiv.org/abs/2203.08679).
    Reference implementation: ``dkd_loss`` of https://github.com/megvii-research/mdistiller.

    Args:
        student_NK: logits, before any activation.
        teacher_NK: logits of the same shape.
        target_N: target classes, integers in 0 … K − 1.
        alpha: factor ≥ 0 of the target's term.
        beta: factor ≥ 0 of the others' term.
        temperature: T > 0.
        weight_N: a factor ≥ 0 for each prior; 1 if not given.
        reduction: ``'none'`` gives (N,); ``'sum'`` the weighted sum; ``'batchmean'`` the sum /
            ``avg_factor``.
        avg_factor: divisor of the mean; N by default.

    Returns:
        A scalar, or (N,) with ``reduction='none'``; ≥ 0 up to rounding.

    Raises:
        ValueError: the shapes differ or are not (N, K); targets are not N integers; one class; a bad option.

    Example:
        >>> student_NK, teacher_NK = torch.zeros(1, 3), torch.tensor([[4.0, 1.0, -1.0]])
        >>> target_N = torch.tensor([0])
        >>> of_target = decoupled_kl(student_NK, teacher_NK, target_N, alpha=1, beta=0)
        >>> of_others = decoupled_kl(student_NK, teacher_NK, target_N, alpha=0, beta=1)
        >>> torch.allclose(decoupled_kl(student_NK, teacher_NK, target_N), of_target + of_others)
        True
    """
    check_kl_options(temperature, "softmax", "sum")
    check_factors(alpha=alpha, beta=beta)
    check_choice("reduction", reduction, SumReduction)
    check_pair(student_NK, teacher_NK, weight_N)
    check_two_classes(student_NK.shape[1])
    if target_N.shape != student_NK.shape[:1] or target_N.is_floating_point() or target_N.dtype == torch.bool:
        raise ValueError(
            f"expected targets ({student_NK.shape[0]},) of integers, "
            f"found {tuple(target_N.shape)} of {target_N.dtype}"
        )
    with torch.autocast(student_NK.device.type, enabled=False):
        target_N1 = target_N.long()[:, None]
        # The K − 1 classes other than the target, in order.
        others = torch.arange(student_NK.shape[1] - 1, device=target_N.device)
        others = others + (others >= target_N1)

        def split(logits_NK: Tensor) -> tuple[Tensor, Tensor]:
            rest = logits_NK.gather(1, others)
            # The logit of "the target and no other class": log p_y − log(1 − p_y).
            scaled_N1 = (logits_NK.gather(1, target_N1) / temperature) - (rest / temperature).logsumexp(
                1, True
            )
            return scaled_N1, rest

        target_s, rest_s = split(exact(student_NK))
        target_t, rest_t = split(exact(teacher_NK.detach()))
        target_term_N = temperature**2 * KLDivergence.apply(target_s, target_t, 1.0, "sigmoid")
        others_term_N = KLDivergence.apply(rest_s, rest_t, float(temperature), "softmax")
        return reduce_priors(alpha * target_term_N + beta * others_term_N, weight_N, reduction, avg_factor)


def check_two_classes(cls_channels: int) -> None:
    """Raise ValueError for one class: its softmax has nothing to decouple."""
    if cls_channels < 2:
        raise ValueError(
            "it is a softmax over the classes, which is always 1 for a single class; use "
            "DistillationLoss with activation='sigmoid'"
        )
