"""Further distillation losses on class logits; torch is all they need.

Shape suffixes: N priors (or samples), K classes, G groups (images).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd.losses.functional import Activation, check_kl_options, check_softmax_classes
from mmkd.losses.kernels import KLDivergence

SumReduction = Literal["none", "sum", "batchmean"]

# The least length of a vector that is correlated: the root of what the reference adds to the product of two.
_SHORTEST = 1e-4


def modulated_bce(
    student_NK: Tensor,
    teacher_NK: Tensor,
    *,
    beta: float = 1.0,
    weight_N: Tensor | None = None,
    reduction: SumReduction = "batchmean",
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    r"""Binary cross entropy with the teacher's scores, weighted by how far the student is from them.

    .. math:: \sum_c |\sigma(z^t_c) - \sigma(z^s_c)|^\beta \; \mathrm{BCE}(\sigma(z^s_c), \sigma(z^t_c))

    is the value of one prior: zero where both agree, though the cross entropy is not. The gradient goes
    through the weight as well, as in the reference implementation. Half-precision input is computed in
    float32, also under autocast. The teacher gets no gradient.

    Source: Yang et al., "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object
    Detection", ICCV 2023 (https://arxiv.org/abs/2308.14286). Reference implementation: ``novel_kd_loss`` of
    https://github.com/TinyTigerPan/BCKD.

    Args:
        student_NK: logits, before any activation.
        teacher_NK: logits of the same shape.
        beta: exponent ≥ 1; below, the gradient has a pole where both agree.
        weight_N: a factor ≥ 0 for each prior; 1 if not given.
        reduction: ``'none'`` gives (N,); ``'sum'`` the weighted sum; ``'batchmean'`` that / ``avg_factor``.
        avg_factor: divisor of the mean; N if not given.

    Returns:
        A scalar, or (N,) with ``reduction='none'``; ≥ 0.

    Raises:
        ValueError: the shapes differ or are not (N, K); a bad option.
    """
    check_exponent(beta)
    _check_reduction(reduction)
    _check_pair(student_NK, teacher_NK, weight_N)
    with torch.autocast(student_NK.device.type, enabled=False):
        student_NK, p_t_NK = _exact(student_NK), _exact(teacher_NK.detach()).sigmoid()
        distance_NK = (p_t_NK - student_NK.sigmoid()).abs().pow(beta)
        bce_NK = F.binary_cross_entropy_with_logits(student_NK, p_t_NK, reduction="none")
        return _reduce((distance_NK * bce_NK).sum(dim=1), weight_N, reduction, avg_factor)


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
    r"""The KL divergence of softmaxes, split into what concerns the target class and the rest.

    With :math:`p = \mathrm{softmax}(z / T)`, y the target class, :math:`b = (p_y, 1 - p_y)` and
    :math:`\hat p = \mathrm{softmax}` over the K − 1 other classes, the value of one prior is

    .. math:: T^2 ( \alpha \, \mathrm{KL}(b^t \| b^s) + \beta \, \mathrm{KL}(\hat p^t \| \hat p^s) )

    Hinton's KL is :math:`\alpha = 1, \beta = 1 - p^t_y`: it hides the second term where the teacher is sure.
    With two classes the second term is zero. Both are computed from logits; the reference implementation
    takes the logarithm of a probability, which may be 0, and masks the target's logit by −1000.
    Half-precision input is computed in float32, also under autocast. The teacher gets no gradient.

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
        reduction: ``'none'`` gives (N,); ``'sum'`` the weighted sum; ``'batchmean'`` that / ``avg_factor``.
        avg_factor: divisor of the mean; N if not given.

    Returns:
        A scalar, or (N,) with ``reduction='none'``; ≥ 0 up to rounding.

    Raises:
        ValueError: the shapes differ or are not (N, K); targets are not N integers; one class; a bad option.
    """
    check_kl_options(temperature, "softmax", "sum")
    check_factors(alpha=alpha, beta=beta)
    _check_reduction(reduction)
    _check_pair(student_NK, teacher_NK, weight_N)
    check_two_classes(student_NK.shape[1])
    if target_N.shape != student_NK.shape[:1] or target_N.is_floating_point() or target_N.dtype == torch.bool:
        raise ValueError(
            f"expected targets ({student_NK.shape[0]},) of integers, "
            f"found {tuple(target_N.shape)} of {target_N.dtype}"
        )
    with torch.autocast(student_NK.device.type, enabled=False):
        target_N1 = target_N.long()[:, None]
        # The K − 1 classes other than the target, in their order.
        others = torch.arange(student_NK.shape[1] - 1, device=target_N.device)
        others = others + (others >= target_N1)

        def split(logits_NK: Tensor) -> tuple[Tensor, Tensor]:
            rest = logits_NK.gather(1, others)
            # The logit of "the target and no other": log p_y − log(1 − p_y).
            scaled_N1 = (logits_NK.gather(1, target_N1) / temperature) - (rest / temperature).logsumexp(
                1, True
            )
            return scaled_N1, rest

        target_s, rest_s = split(_exact(student_NK))
        target_t, rest_t = split(_exact(teacher_NK.detach()))
        target_term_N = temperature**2 * KLDivergence.apply(target_s, target_t, 1.0, "sigmoid")
        others_term_N = KLDivergence.apply(rest_s, rest_t, float(temperature), "softmax")
        return _reduce(alpha * target_term_N + beta * others_term_N, weight_N, reduction, avg_factor)


def relation_distances(
    student_NK: Tensor,
    teacher_NK: Tensor,
    *,
    temperature: float = 1.0,
    activation: Activation = "softmax",
    group_N: Tensor | None = None,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    r"""How far the scores of student and teacher are from a linear relation, by row and by column.

    With Y the scores (softmax or sigmoid of z / T) and :math:`\rho` Pearson's correlation, the distances are

    .. math::
        d_i = T^2 (1 - \rho(Y^s_{i \cdot}, Y^t_{i \cdot})), \qquad
        d_g = \frac{T^2}{K} \sum_c (1 - \rho(Y^s_{g c}, Y^t_{g c}))

    the first between the classes of a prior, the second between the priors of a group for one class. They are
    in 0 … 2T². 1 − ρ is computed as half the squared distance of the centered vectors at unit length, where a
    vector shorter than 1e-4 is divided by 1e-4. So a constant one, whose correlation is undefined, has the
    distance 0 from another constant one and T²/2 from any other, and the gradient stays finite; the reference
    implementation adds 1e-8 to the product of both lengths, and gives 1 for either. Half-precision input is
    computed in float32, also under autocast. The teacher gets no gradient.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022
    (https://arxiv.org/abs/2205.10536). Reference implementation: ``DIST`` of
    https://github.com/hunto/DIST_KD.

    Args:
        student_NK: logits, before any activation.
        teacher_NK: logits of the same shape.
        temperature: T > 0.
        activation: ``'softmax'`` or ``'sigmoid'``.
        group_N: the group of each prior, integers in 0 … ``groups`` − 1; all in one if not given.
        groups: G.

    Returns:
        Distances between classes (N,) and within them (G,); the latter 0 for groups of fewer than two.

    Raises:
        ValueError: the shapes differ or are not (N, K); a softmax over one class; a bad option.
    """
    check_kl_options(temperature, activation, "sum")
    _check_pair(student_NK, teacher_NK, None)
    check_softmax_classes(activation, student_NK.shape[1])
    if group_N is None:
        group_N = torch.zeros(student_NK.shape[0], dtype=torch.long, device=student_NK.device)
    if group_N.shape != student_NK.shape[:1] or group_N.is_floating_point():
        raise ValueError(
            f"expected groups ({student_NK.shape[0]},) of integers, found {tuple(group_N.shape)}"
        )
    with torch.autocast(student_NK.device.type, enabled=False):
        logits = torch.stack([_exact(student_NK), _exact(teacher_NK.detach())]) / temperature
        scores = logits.softmax(dim=2) if activation == "softmax" else logits.sigmoid()

        rows = _unit(scores - scores.mean(dim=2, keepdim=True), lambda x: x.sum(dim=2, keepdim=True))
        between_N = (rows[0] - rows[1]).square().sum(dim=1) / 2

        def of_groups(x: Tensor) -> Tensor:
            return x.new_zeros(*x.shape[:-2], groups, x.shape[-1]).index_add(-2, group_N, x)

        size_G1 = of_groups(torch.ones_like(scores[0, :, :1])).clamp(min=1)
        centered = scores - (of_groups(scores) / size_G1)[:, group_N]
        columns = _unit(centered, lambda x: of_groups(x)[:, group_N])
        within_G = of_groups((columns[0] - columns[1]).square()).mean(dim=1) / 2
        return temperature**2 * between_N, temperature**2 * within_G


def relation_loss(
    student_NK: Tensor,
    teacher_NK: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    activation: Activation = "softmax",
) -> Tensor:
    r"""DIST for classification: β · mean over samples + γ · mean over classes of `relation_distances`.

    The relation within a class is between the samples of the batch, so the value depends on its size.

    Args:
        student_NK: logits of a batch.
        teacher_NK: logits of the same shape.
        beta: factor ≥ 0 of the distance between the classes of a sample.
        gamma: factor ≥ 0 of the distance between the samples for a class.
        temperature: T > 0.
        activation: ``'softmax'`` or ``'sigmoid'``.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: as `relation_distances`; a bad factor.
    """
    check_factors(beta=beta, gamma=gamma)
    between_N, within_G = relation_distances(
        student_NK, teacher_NK, temperature=temperature, activation=activation
    )
    return beta * between_N.sum() / max(1, len(between_N)) + gamma * within_G.sum()


def image_of_prior(levels: Sequence[Tensor], num_base_priors: Sequence[int]) -> Tensor:
    """The image of each prior, (N,), in the order of levels, images, positions.

    Args:
        levels: per level, maps B×…×H×W.
        num_base_priors: per level, the priors at a position.
    """
    return torch.cat(
        [
            torch.arange(level.shape[0], device=level.device).repeat_interleave(
                level.shape[-2] * level.shape[-1] * A
            )
            for level, A in zip(levels, num_base_priors)
        ]
    )


def check_exponent(beta: Any) -> None:
    """Raise ValueError if the exponent of `modulated_bce` is out of its range."""
    if not _is_number(beta) or not 1 <= beta < float("inf"):
        raise ValueError(f"beta must be a number ≥ 1, found {beta!r}")


def check_factors(**factors: Any) -> None:
    """Raise ValueError if a factor is no number ≥ 0, or if all are zero."""
    for name, value in factors.items():
        if not _is_number(value) or not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a number ≥ 0, found {value!r}")
    if not any(factors.values()):
        raise ValueError(
            f"{' and '.join(factors)} are both 0, which leaves no loss; set loss_weight=0 instead"
        )


def check_two_classes(cls_channels: int) -> None:
    """Raise ValueError for one class: its softmax has nothing to decouple."""
    if cls_channels < 2:
        raise ValueError(
            "it is a softmax over the classes, which is 1 whatever the logit where there is one class; "
            "use DistillationLoss with activation='sigmoid'"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_reduction(reduction: Any) -> None:
    if reduction not in get_args(SumReduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(SumReduction))}, found {reduction!r}")


def _check_pair(student_NK: Tensor, teacher_NK: Tensor, weight_N: Tensor | None) -> None:
    if student_NK.dim() != 2 or student_NK.shape != teacher_NK.shape:
        raise ValueError(
            f"expected logits of one shape (N, K), found student {tuple(student_NK.shape)} "
            f"and teacher {tuple(teacher_NK.shape)}"
        )
    if weight_N is not None and weight_N.shape != student_NK.shape[:1]:
        raise ValueError(f"expected weights ({student_NK.shape[0]},), found {tuple(weight_N.shape)}")


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _unit(centered: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    # The clamp is of the square: the root of 0 has no gradient.
    return centered / total(centered.square()).clamp(min=_SHORTEST**2).sqrt()


def _reduce(
    value_N: Tensor, weight_N: Tensor | None, reduction: str, avg_factor: Tensor | float | None
) -> Tensor:
    if weight_N is not None:
        value_N = value_N * weight_N
    if reduction == "none":
        return value_N
    total = value_N.sum()
    if reduction == "sum":
        return total
    return total / (len(value_N) if avg_factor is None else avg_factor)
