"""Correlations between class scores as a distillation loss; torch is all that they need.

Shape suffixes: N priors (or samples), K classes, G groups (images).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmkd.functional.checks import check_factors, check_pair, exact
from mmkd.functional.kl import Activation, check_kl_options, check_softmax_classes

# The least length of a vector that is correlated: the root of what the reference adds to the product of two.
_SHORTEST = 1e-4


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

    Example:
        >>> student_NK, teacher_NK = torch.randn(6, 4), torch.randn(6, 4)
        >>> image_N = torch.tensor([0, 0, 0, 1, 1, 1])
        >>> between_N, within_G = relation_distances(student_NK, teacher_NK, group_N=image_N, groups=2)
        >>> between_N.shape, within_G.shape
        (torch.Size([6]), torch.Size([2]))
    """
    check_kl_options(temperature, activation, "sum")
    check_pair(student_NK, teacher_NK, None)
    check_softmax_classes(activation, student_NK.shape[1])
    if group_N is not None and (group_N.shape != student_NK.shape[:1] or group_N.is_floating_point()):
        raise ValueError(
            f"expected groups ({student_NK.shape[0]},) of integers, found {tuple(group_N.shape)}"
        )
    with torch.autocast(student_NK.device.type, enabled=False):
        logits = torch.stack([exact(student_NK), exact(teacher_NK.detach())]) / temperature
        scores = logits.softmax(dim=2) if activation == "softmax" else logits.sigmoid()

        rows = _unit(scores - scores.mean(dim=2, keepdim=True), lambda x: x.sum(dim=2, keepdim=True))
        between_N = (rows[0] - rows[1]).square().sum(dim=1) / 2

        if group_N is None:  # plain sums: gathering by group is several times slower
            columns = _unit(scores - scores.mean(dim=1, keepdim=True), lambda x: x.sum(dim=1, keepdim=True))
            within_G = scores.new_zeros(groups)
            if scores.shape[1] > 0:
                within_G[0] = (columns[0] - columns[1]).square().sum(dim=0).mean() / 2
            return temperature**2 * between_N, temperature**2 * within_G

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


def _unit(centered: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    # The clamp is of the square: the root of 0 has no gradient.
    return centered / total(centered.square()).clamp(min=_SHORTEST**2).sqrt()
