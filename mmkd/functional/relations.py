"""Correlations between class scores as a distillation loss; they need only torch.

Shape suffixes: N priors (or samples), K classes, G groups (images).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd.functional.checks import check_factors, check_pair, exact
from mmkd.functional.kl import Activation, check_kl_options, check_softmax_classes

# The shortest vector length in a correlation: the root of what the reference adds to the product of two.
_SHORTEST = 1e-4


def relation_distances(
    student_NK: Tensor,
    teacher_NK: Tensor,
    *,
    temperature: float = 1.0,
    activation: Activation = "softmax",
    weight_N: Tensor | None = None,
    group_N: Tensor | None = None,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    r"""How far the student's and teacher's scores are from a linear relation, by row and by column.

    With Y the scores (softmax or sigmoid of z / T) and :math:`\rho` Pearson's correlation, the distances are

    .. math::
        d_i = T^2 (1 - \rho(Y^s_{i \cdot}, Y^t_{i \cdot})), \qquad
        d_g = \frac{T^2}{K} \sum_c (1 - \rho(Y^s_{g c}, Y^t_{g c}))

    the first between the classes of a prior, the second between the priors of a group for one class. They are
    in 0 … 2T². 1 − ρ is computed as half the squared distance of the centered vectors at unit length, where a
    vector shorter than 1e-4 is divided by 1e-4. So a constant vector, whose correlation is undefined, has
    distance 0 to another constant vector and T²/2 to any other, and the gradient stays finite; the reference
    implementation adds 1e-8 to the product of both lengths, and gives 1 in both cases. Half-precision input
    is computed in float32, also under autocast. The teacher gets no gradient.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022
    (https://arxiv.org/abs/2205.10536). Reference implementation: ``DIST`` of
    https://github.com/hunto/DIST_KD.

    Args:
        student_NK: logits, before any activation.
        teacher_NK: logits of the same shape.
        temperature: T > 0.
        activation: ``'softmax'`` or ``'sigmoid'``.
        weight_N: a factor ≥ 0 for each prior in the correlations of its group; 1 if not given. The distances
            between classes are not weighted.
        group_N: the group of each prior, integers in 0 … ``groups`` − 1; one group by default.
        groups: G.

    Returns:
        Distances between classes (N,) and within them (G,); the latter 0 for groups with fewer than two
        priors.

    Raises:
        ValueError: the shapes differ or are not (N, K); a softmax over one class; a bad option.

    Example:
        >>> student_NK, teacher_NK = torch.randn(6, 4), torch.randn(6, 4)
        >>> image_N = torch.tensor([0, 0, 0, 1, 1, 1])
        >>> between_N, within_G = relation_distances(student_NK, teacher_NK, group_N=image_N, groups=2)
        >>> between_N.shape, within_G.shape
        (torch.Size([6]), torch.Size([2]))
    """
    check_kl_options(temperature, activation, "sum")
    check_pair(student_NK, teacher_NK, weight_N)
    check_softmax_classes(activation, student_NK.shape[1])
    if group_N is not None and (group_N.shape != student_NK.shape[:1] or group_N.is_floating_point()):
        raise ValueError(
            f"expected groups ({student_NK.shape[0]},) of integers, found {tuple(group_N.shape)}"
        )
    with torch.autocast(student_NK.device.type, enabled=False):
        student_NK, teacher_NK = exact(student_NK), exact(teacher_NK.detach())
        if weight_N is not None:
            weight_N = weight_N.to(student_NK.dtype)
        found: tuple[Tensor, Tensor] = _Relations.apply(
            student_NK, teacher_NK, float(temperature), activation, weight_N, group_N, groups
        )
        return found


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

    The relation within a class compares the samples of the batch, so the value depends on the batch size.

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
        ValueError: as in `relation_distances`; a bad factor.

    Example:
        >>> logits_NK = torch.randn(6, 4)
        >>> bool(relation_loss(logits_NK, logits_NK + 1) < 1e-6)  # a softmax does not see the shift
        True
    """
    check_factors(beta=beta, gamma=gamma)
    between_N, within_G = relation_distances(
        student_NK, teacher_NK, temperature=temperature, activation=activation
    )
    return beta * between_N.sum() / max(1, len(between_N)) + gamma * within_G.sum()


class _Relations(torch.autograd.Function):
    """Both distances. The gradient is computed together with the value, and only it is kept.

    Built from PyTorch's operations they take two to three times as long and keep a dozen (N, K) tensors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_NK: Tensor,
        teacher_NK: Tensor,
        temperature: float,
        activation: str,
        weight_N: Tensor | None,
        group_N: Tensor | None,
        groups: int,
    ) -> tuple[Tensor, Tensor]:
        own_NK, taught_NK = (_scores(logits, temperature, activation) for logits in (student_NK, teacher_NK))
        between_N1, rows_NK = _distances(
            own_NK,
            taught_NK,
            lambda x: x.mean(dim=1, keepdim=True),
            lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True),
            lambda x: x,
        )
        mean, length, spread = _of_groups(own_NK, weight_N, group_N, groups)
        within_GK, columns_NK = _distances(own_NK, taught_NK, mean, length, spread)
        if weight_N is not None:
            columns_NK.mul_(weight_N[:, None])
        within_G = F.pad(within_GK.mean(dim=1), (0, groups - len(within_GK)))
        ctx.temperature, ctx.activation = temperature, activation
        ctx.save_for_backward(own_NK, rows_NK, columns_NK, group_N)
        return between_N1.squeeze(1).mul_(temperature**2), within_G.mul_(temperature**2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor, grad_G: Tensor) -> tuple[Tensor | None, ...]:
        own_NK, rows_NK, columns_NK, group_N = ctx.saved_tensors
        share_G = grad_G * (ctx.temperature / own_NK.shape[1])
        share = share_G[0] if group_N is None else share_G[group_N][:, None]
        grad_NK = (columns_NK * share).addcmul_(rows_NK, grad_N[:, None], value=ctx.temperature)
        if ctx.activation == "softmax":
            grad_NK.sub_((grad_NK * own_NK).sum(dim=1, keepdim=True)).mul_(own_NK)
        else:
            grad_NK.mul_(own_NK).mul_(1 - own_NK)
        return grad_NK, *[None] * 6


def _scores(logits_NK: Tensor, temperature: float, activation: str) -> Tensor:
    if temperature != 1:
        logits_NK = logits_NK / temperature
    return logits_NK.softmax(dim=1) if activation == "softmax" else logits_NK.sigmoid()


Statistic = Callable[[Tensor], Tensor]


def _of_groups(
    like_NK: Tensor, weight_N: Tensor | None, group_N: Tensor | None, groups: int
) -> tuple[Statistic, Statistic, Statistic]:
    """Mean and length of each group's columns, (G, K), and a function giving each row its group's value."""
    if group_N is None and weight_N is None:  # plain sums: gathering by group is several times slower
        return (
            lambda x: x.mean(dim=0, keepdim=True),
            lambda x: torch.linalg.vector_norm(x, dim=0, keepdim=True),
            lambda x: x,
        )
    N = len(like_NK)
    index_N = like_NK.new_zeros(N, dtype=torch.long) if group_N is None else group_N
    weight_N1 = (like_NK.new_ones(N) if weight_N is None else weight_N)[:, None]

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(groups, x.shape[1]).index_add(0, index_N, x * weight_N1)

    size_G1 = total(like_NK.new_ones(N, 1))
    size_G1 = size_G1.masked_fill(size_G1 == 0, 1)
    return (lambda x: total(x) / size_G1, lambda x: total(x.square()).sqrt(), lambda x: x[index_N])


def _distances(
    own_NK: Tensor, taught_NK: Tensor, mean: Statistic, length: Statistic, spread: Statistic
) -> tuple[Tensor, Tensor]:
    r"""1 − ρ of vectors, and its gradient with respect to the student's scores.

    With u and v the centered vectors at unit length and l the length of the student's, they are
    :math:`\tfrac12 \|u - v\|^2` and :math:`(\rho u - v) / l`; for a vector shorter than `_SHORTEST`, u − v is
    divided by that.

    Args:
        own_NK: scores of the student.
        taught_NK: scores of the teacher.
        mean: a function that averages each vector of such a matrix.
        length: a function that gives the length of each vector of such a matrix.
        spread: maps one value per vector to one per element, or to something that broadcasts to that.

    Returns:
        The distances, shaped like ``mean``'s result, and the gradient (N, K).
    """
    u_NK, v_NK = own_NK - spread(mean(own_NK)), taught_NK - spread(mean(taught_NK))
    own, taught = length(u_NK), length(v_NK)
    least_own, least_taught = own.clamp(min=_SHORTEST), taught.clamp(min=_SHORTEST)
    u_NK.div_(spread(least_own))
    gap_NK = v_NK.div_(spread(least_taught)).sub_(u_NK)
    distance = length(gap_NK).square_().div_(2)
    # With both at unit length, ρ − 1 is minus the distance.
    excess = (taught / least_taught).square_().sub_(1).div_(2).sub_(distance).masked_fill_(own < _SHORTEST, 0)
    return distance, gap_NK.addcmul_(u_NK, spread(excess), value=-1).div_(spread(-least_own))
