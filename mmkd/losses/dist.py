"""`DISTLoss`: matches relations between class scores instead of the scores themselves."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmkd.errors import naming
from mmkd.functional.checks import check_choice, check_factors
from mmkd.functional.kl import Activation, check_kl_options, check_softmax_classes
from mmkd.functional.relations import relation_distances
from mmkd.losses.base import warn_of_sigmoids
from mmkd.losses.row_base import Normalizer, Region, RowLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Need, Valid

Relation = Literal["image", "batch"]


@MODELS.register_module()
class DISTLoss(RowLoss):
    r"""Pearson correlation of class scores, over the classes of a prior and over the priors of an image.

    .. math:: \lambda T^2 \left(
        \frac{\beta}{n} \sum_i (1 - \rho(Y^s_{i \cdot}, Y^t_{i \cdot})) +
        \frac{\gamma}{m} \sum_g \frac{1}{K} \sum_c (1 - \rho(Y^s_{g c}, Y^t_{g c})) \right)

    over the n priors i of the region and the m images g with two or more of them; Y are the scores at
    temperature T; see :func:`mmkd.functional.relation_distances`. The student may scale and shift its scores,
    so a teacher that is far more confident than the student can become does no harm.

    The relation within a class compares the priors of one image; the reference implementation compares those
    of the process's whole batch. So here the value does not depend on how images are batched. n and m are
    averaged over processes.

    Source: Huang et al., NeurIPS 2022 (https://arxiv.org/abs/2205.10536). Reference implementation:
    https://github.com/hunto/DIST_KD; its code defaults to β = γ = 1.

    Args:
        loss_weight: λ ≥ 0.
        beta: factor ≥ 0 of the relation between classes. It has no gradient with one class, or with two and a
            softmax.
        gamma: factor ≥ 0 of the relation within a class.
        temperature: T > 0.
        activation: ``'sigmoid'`` for heads trained with focal or quality-focal loss; ``'softmax'``.
        region: a factor for each prior in both relations, see `RowLoss`.
        relation: the priors compared within a class: those of an ``'image'``, or of the process's ``'batch'``
            as in the reference implementation.
        valid: which priors count, see `RowLoss`.
        normalizer: n, see `RowLoss`.

    Raises:
        UserError: an option is out of its range, or softmax is used with one class.
    """

    reads: frozenset[Need] = frozenset({"cls_logits"})
    selects = True

    def __init__(
        self,
        loss_weight: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
        activation: Activation = "sigmoid",
        region: Region = "foreground",
        relation: Relation = "image",
        valid: Valid = "image",
        normalizer: Normalizer = "region",
    ) -> None:
        super().__init__(loss_weight, region, normalizer, valid)
        with naming(self):
            check_kl_options(temperature, activation, "sum")
            check_factors(beta=beta, gamma=gamma)
            check_choice("relation", relation, Relation)
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature
        self.activation = activation
        self.relation = relation

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Refuse a softmax over one class channel, and options that leave no gradient."""
        classes = student.cls_channels
        with naming(self):
            check_softmax_classes(self.activation, classes)
            if self.gamma == 0 and classes < (3 if self.activation == "softmax" else 2):
                raise ValueError(
                    f"the inter-class relation of {classes} class(es) has no gradient; set gamma > 0"
                )
        warn_of_sigmoids(self, self.activation, student)

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a float32 scalar.

        Args:
            student: outputs with class logits.
            teacher: outputs with class logits of the same layout.
            context: the batch, with labels for the foreground.
        """
        rows = self.rows(student, teacher, context)
        image_N, groups = rows.of(student.image_N), context.num_images
        if self.relation == "batch":
            image_N, groups = torch.zeros_like(image_N), 1
        between_N, within_G = relation_distances(
            rows.of(student.flat_cls_logits()),
            rows.of(teacher.flat_cls_logits()),
            temperature=self.temperature,
            activation=self.activation,
            weight_N=None if self.region in ("all", "foreground") else rows.weight_N,  # all 1
            group_N=None if self.relation == "batch" else image_N,
            groups=groups,
        )
        images = (image_N.bincount(minlength=groups) >= 2).sum()
        # If no image on any process has two priors, the sum above it is 0 too.
        m = context.mean_over_processes(images).clamp(min=torch.finfo(torch.float32).eps)
        between = (rows.weight_N * between_N).sum() / rows.divisor
        return self.loss_weight * (self.beta * between + self.gamma * within_G.sum() / m)
