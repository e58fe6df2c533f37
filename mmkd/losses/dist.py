"""`DISTLoss`: relations between class scores in place of the scores themselves."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mmkd.errors import UserError
from mmkd.functional.checks import check_factors
from mmkd.functional.kl import Activation, check_kl_options, check_softmax_classes
from mmkd.functional.relations import relation_distances
from mmkd.losses.base import DistillLoss, image_of_prior
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Valid

Region = Literal["all", "foreground"]
Relation = Literal["image", "batch"]


@MODELS.register_module()
class DISTLoss(DistillLoss):
    r"""Pearson correlation of class scores, over the classes of a prior and over the priors of an image.

    .. math:: \lambda T^2 \left(
        \frac{\beta}{n} \sum_i (1 - \rho(Y^s_{i \cdot}, Y^t_{i \cdot})) +
        \frac{\gamma}{m} \sum_g \frac{1}{K} \sum_c (1 - \rho(Y^s_{g c}, Y^t_{g c})) \right)

    over the n priors i of the region and the m images g that have two or more of them; Y are the scores at
    temperature T; see :func:`mmkd.functional.relation_distances`. The student may scale and
    shift its scores, so a teacher that is much surer than the student can become is no burden.

    The relation within a class is between the priors of one image, where the reference implementation has
    those of the process's batch: so the value does not depend on how images are put into batches. n and m are
    averaged over processes.

    Source: Huang et al., NeurIPS 2022 (https://arxiv.org/abs/2205.10536). Reference implementation:
    https://github.com/hunto/DIST_KD; β = γ = 1 are the defaults of its code.

    Args:
        loss_weight: λ ≥ 0.
        beta: factor ≥ 0 of the relation between classes. It has no gradient with one class, nor with two and
            a softmax.
        gamma: factor ≥ 0 of the relation within a class.
        temperature: T > 0.
        activation: ``'sigmoid'`` for heads trained with focal or quality-focal loss; ``'softmax'``.
        region: ``'foreground'``: priors to which the student's assigner gives an object; ``'all'``: all
            outside the padding.
        relation: between which priors the one within a class is: those of an ``'image'``, or of the process's
            ``'batch'``, as in the reference implementation.
        valid: which priors count, see `DistillLoss`.

    Raises:
        UserError: an option is out of its range, or softmax meets one class.
    """

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
    ) -> None:
        super().__init__(loss_weight, valid)
        try:
            check_kl_options(temperature, activation, "sum")
            check_factors(beta=beta, gamma=gamma)
            if region not in get_args(Region):
                raise ValueError(f"region must be one of {', '.join(get_args(Region))}, found {region!r}")
            if relation not in get_args(Relation):
                raise ValueError(
                    f"relation must be one of {', '.join(get_args(Relation))}, found {relation!r}"
                )
        except ValueError as error:
            raise UserError(f"DISTLoss: {error}") from None
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature
        self.activation = activation
        self.region = region
        self.relation = relation
        self.needs = frozenset({"cls_logits", "labels"} if region == "foreground" else {"cls_logits"})

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Refuse a softmax over one class channel, and what is left of the loss if it has no gradient."""
        classes = student.cls_channels
        try:
            check_softmax_classes(self.activation, classes)
            if self.gamma == 0 and classes < (3 if self.activation == "softmax" else 2):
                raise ValueError(f"the relation between {classes} class(es) has no gradient; set gamma > 0")
        except ValueError as error:
            raise UserError(f"DISTLoss: {error}") from None

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a float32 scalar.

        Args:
            student: outputs with class logits.
            teacher: outputs with class logits of the same layout.
            context: the batch, with labels for the foreground.
        """
        assert student.cls_logits is not None
        rows = self._region(student, context).nonzero().squeeze(1)
        image_N = image_of_prior(student.cls_logits, student.spec.num_base_priors)[rows]
        groups = context.num_images
        if self.relation == "batch":
            image_N, groups = torch.zeros_like(image_N), 1
        between_N, within_G = relation_distances(
            student.flat_cls_logits()[rows],
            teacher.flat_cls_logits()[rows],
            temperature=self.temperature,
            activation=self.activation,
            group_N=None if self.relation == "batch" else image_N,
            groups=groups,
        )
        images = (image_N.bincount(minlength=groups) >= 2).sum()
        # No prior in the region on any process: the sum above it is zero as well.
        n, m = (
            context.mean_over_processes(count).clamp(min=torch.finfo(torch.float32).eps)
            for count in (image_N.new_tensor(len(image_N)), images)
        )
        return self.loss_weight * (self.beta * between_N.sum() / n + self.gamma * within_G.sum() / m)

    def _region(self, student: DenseOutputs, context: DistillContext) -> Tensor:
        if self.region == "all":
            return context.valid_N
        assert context.labels_N is not None
        return context.valid_N & (context.labels_N >= 0) & (context.labels_N < student.spec.num_classes)
